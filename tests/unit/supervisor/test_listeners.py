"""Which sockets health is answered on, out of those that systemd hands over, those that it has kept, and our own."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metamusesd.config import Config, load
from metamusesd.log import get_logger
from metamusesd.supervisor import listeners
from metamusesd.supervisor.listeners import Listener, listen, open_listeners
from metamusesd.supervisor.systemd import Notifier

Open = Callable[..., list[Listener]]


class Told(Notifier):
    """Notes what systemd would hear."""

    def __init__(self) -> None:
        super().__init__({})
        self.said: list[str] = []

    def keep(self, name: str, kept: socket.socket) -> None:
        self.said.append(f"keep {name}")

    def forget(self, name: str) -> None:
        self.said.append(f"forget {name}")


@pytest.fixture
def notifier() -> Told:
    return Told()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "run").mkdir()
    return load(environ={}, overrides={"daemon.state_dir": str(tmp_path), "models.smollm2.engine": "echo"})


@pytest.fixture
def opened(config: Config, notifier: Told, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """open_listeners, with what systemd hands over; everything is closed at the end."""
    found: list[Listener] = []

    def given(*sockets: tuple[str, socket.socket], tcp: str = "") -> list[Listener]:
        monkeypatch.setattr(listeners, "inherited", lambda: list(sockets))
        wanted = load(environ={}, overrides={"daemon.state_dir": str(config.state_dir), "health.tcp": f'"{tcp}"'})
        fresh = open_listeners(wanted, notifier, get_logger("test"))
        found.extend(fresh)
        return fresh

    yield given
    for listener in found:
        listener.close()


def on_tcp(address: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)


def test_alone_it_makes_its_own_and_has_it_kept(opened: Open, config: Config, notifier: Told) -> None:
    """Without systemd's sockets: one on the path of the configuration, for its group; the path goes at the end."""
    [mine] = opened()
    assert mine.socket.getsockname() == str(config.health_socket)
    assert notifier.said == ["keep health.kept"]
    mine.close()
    assert not config.health_socket.exists()


def test_sockets_without_a_name_are_told_by_their_family(opened: Open, config: Config, notifier: Told) -> None:
    """A unit that names nothing, or wrongly, means the same; several addresses are all listened on."""
    unix = listen(config.runtime_dir / "given.sock")
    first, second = on_tcp(), on_tcp("::1")
    found = opened(("", first), ("something.socket", unix), ("health", second), tcp="127.0.0.1:1")
    assert [each.socket for each in found] == [unix, first, second]
    assert all(each.path is None for each in found)
    assert notifier.said == []


def test_what_cannot_be_listened_on_is_closed_and_replaced(opened: Open, config: Config) -> None:
    """A datagram socket, and one that nobody listens on, are of no use: the daemon makes its own."""
    datagram, idle = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socket(socket.AF_INET)
    [mine] = opened(("health", datagram), ("metrics", idle))
    assert mine.path == config.health_socket
    assert datagram.fileno() == idle.fileno() == -1


def test_what_was_kept_is_used_while_its_path_leads_to_it(opened: Open, config: Config, notifier: Told) -> None:
    """The very socket of the life before; nothing new is kept."""
    kept = listen(config.health_socket)
    [mine] = opened(("health.kept", kept))
    assert mine.socket is kept
    assert notifier.said == []


@pytest.mark.parametrize("fate", ["deleted", "replaced by a dead one", "of another directory"])
def test_what_was_kept_is_given_up_when_nobody_finds_it(
    opened: Open, config: Config, notifier: Told, fate: str
) -> None:
    """Its path is gone, leads to a socket that nobody has, or is another than the configuration's: a new one."""
    elsewhere = config.runtime_dir / "elsewhere.sock"
    kept = listen(elsewhere if fate == "of another directory" else config.health_socket)
    if fate == "deleted":
        config.health_socket.unlink()
    elif fate == "replaced by a dead one":
        listen(config.health_socket).close()
    [mine] = opened(("health.kept", kept))
    assert mine.socket is not kept and kept.fileno() == -1
    assert notifier.said == ["forget health.kept", "keep health.kept"]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(config.health_socket))


def test_a_socket_unit_goes_before_what_was_kept(opened: Open, config: Config, notifier: Told) -> None:
    """The operator has added a unit: its socket is used, ours is forgotten."""
    unit, kept = listen(config.runtime_dir / "unit.sock"), listen(config.health_socket)
    [found] = opened(("health", unit), ("health.kept", kept))
    assert found.socket is unit and kept.fileno() == -1
    assert notifier.said == ["forget health.kept"]


def test_the_address_of_the_configuration_decides_over_what_was_kept(opened: Open, notifier: Told) -> None:
    """The same address: the same socket. Another one: a new socket, and the old one is given up. IPv6 as well."""
    kept = on_tcp()
    host, port = kept.getsockname()
    assert opened(("metrics.kept", kept), tcp=f"{host}:{port}")[1].socket is kept
    with on_tcp("::1") as probe:
        free = probe.getsockname()[1]
    fresh = opened(("metrics.kept", kept), tcp=f"[::1]:{free}")[1].socket
    assert fresh.getsockname()[:2] == ("::1", free)
    assert kept.fileno() == -1
    assert notifier.said[-2:] == ["forget metrics.kept", "keep metrics.kept"]
