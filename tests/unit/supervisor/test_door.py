"""The control socket: who may order, how answers come, and that nothing there can block or grow."""

from __future__ import annotations

import json
import os
import selectors
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metamusesd.log import get_logger
from metamusesd.supervisor import door
from metamusesd.supervisor.door import Caller, ControlDoor


class Hall:
    """A door with a selector that the test turns by hand."""

    def __init__(self, path: Path) -> None:
        self.path, self.selector = path, selectors.DefaultSelector()
        self.orders: list[tuple[dict[str, Any], Caller]] = []
        self.door = ControlDoor(
            path, self.selector, lambda message, caller: self.orders.append((message, caller)), get_logger("test")
        )
        self.plugs: list[socket.socket] = []

    def turn(self) -> None:
        while ready := self.selector.select(0):
            for key, events in ready:
                key.data(events)
        self.door.sweep()

    def call(self, line: bytes = b"") -> socket.socket:
        plug = socket.socket(socket.AF_UNIX)
        self.plugs.append(plug)
        plug.settimeout(5)
        plug.connect(str(self.path))
        plug.sendall(line)
        self.turn()
        return plug


def answers(plug: socket.socket) -> list[dict[str, Any]]:
    data = b"".join(iter(lambda: plug.recv(65536), b""))
    return [json.loads(line) for line in data.splitlines()]


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    hall = Hall(tmp_path / "control.sock")
    yield hall
    hall.door.close()
    hall.selector.close()
    for plug in hall.plugs:
        plug.close()
    assert not hall.path.exists()


def test_an_order_and_its_answers(hall: Hall) -> None:
    """Steps come as they happen; the last line ends the talk."""
    plug = hall.call(b'{"do": "reload"}\n')
    [(message, caller)] = hall.orders
    assert message == {"do": "reload"}
    caller.step("fast-0 starts")
    caller.end("reloaded", workers=2)
    caller.step("nobody hears this")
    assert answers(plug) == [{"step": "fast-0 starts"}, {"ok": True, "said": "reloaded", "workers": 2}]


@pytest.mark.parametrize("line", [b"x\n", b"[1]\n", b'{"do":' + b" " * 5000])
def test_what_is_no_order_is_refused(hall: Hall, line: bytes) -> None:
    """With what would be right."""
    plug = hall.call(line)
    [answer] = answers(plug)
    assert answer["code"] == "invalid_request" and not hall.orders


def test_who_leaves_is_forgotten(hall: Hall) -> None:
    """An answer to nobody is no trouble."""
    plug = hall.call(b'{"do": "drain"}\n')
    plug.close()
    hall.turn()
    hall.orders[0][1].end("drained")
    assert len(hall.selector.get_map()) == 1


def test_who_says_nothing_is_hung_up_on(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some seconds; who has asked may wait."""
    silent, asked = hall.call(), hall.call(b'{"do": "drain"}\n')
    later_s = door.time.monotonic() + door.PATIENCE_S + 1
    monkeypatch.setattr(door.time, "monotonic", lambda: later_s)
    hall.turn()
    assert answers(silent) == []
    hall.orders[0][1].end("drained")
    assert answers(asked)[-1]["ok"]


def test_there_is_room_for_so_many(hall: Hall) -> None:
    """The next one is told to come back."""
    for _ in range(door.MAX_WAITING):
        hall.call(b'{"do": "drain"}\n')
    [answer] = answers(hall.call(b'{"do": "drain"}\n'))
    assert answer["code"] == "busy"


def test_a_caller_that_does_not_read_is_left(hall: Hall) -> None:
    """The supervisor's loop never waits for it."""
    hall.call(b'{"do": "reload"}\n')
    caller = hall.orders[0][1]
    for _ in range(10_000):
        caller.step("x" * 200)
    assert caller.peer is None


def test_a_descriptor_that_is_given_out_again_in_the_same_turn(hall: Hall) -> None:
    """The caller is answered, and somebody else gets its number and registers it before the turn is over."""
    hall.call(b'{"do": "drain"}\n')
    caller = hall.orders[0][1]
    assert caller.peer is not None
    number = caller.peer.fileno()
    caller.end("drained")
    pair = [*socket.socketpair(), *socket.socketpair()]
    [again] = [each for each in pair if each.fileno() == number]
    hall.selector.register(again, selectors.EVENT_READ, lambda events: None)
    hall.selector.unregister(again)
    for each in pair:
        each.close()


def test_what_cannot_be_read_or_obeyed_ends_nobody(hall: Hall) -> None:
    """Brackets without end, and a mistake of ours: an answer, and the door stays open."""
    [answer] = answers(hall.call(b'{"do":' + b"[" * 4000 + b"\n"))
    assert answer["code"] == "invalid_request"
    hall.door._obey = lambda message, caller: 1 / 0
    [answer] = answers(hall.call(b'{"do": "reload"}\n'))
    assert answer["code"] == "internal_error" and "ZeroDivisionError" in answer["mistakes"][0]


def test_who_has_said_all_still_gets_an_answer(hall: Hall) -> None:
    """A client that shuts its writing side, as netcat does."""
    plug = hall.call(b'{"do": "drain"}\n')
    plug.shutdown(socket.SHUT_WR)
    hall.turn()
    hall.orders[0][1].end("drained")
    assert answers(plug)[-1]["ok"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_else_may_not_order() -> None:
    """Even if the socket's mode lets them connect: the kernel says who they are."""
    with tempfile.TemporaryDirectory(prefix="mm-") as name:
        Path(name).chmod(0o755)
        hall = Hall(Path(name) / "control.sock")
        hall.path.chmod(0o666)
        near, far = os.pipe()
        if (pid := os.fork()) == 0:
            os.setuid(65534)
            stranger = socket.socket(socket.AF_UNIX)
            stranger.connect(str(hall.path))
            stranger.sendall(b'{"do": "drain"}\n')
            os.write(far, stranger.recv(4096))
            os._exit(0)
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            hall.turn()
        assert json.loads(os.read(near, 4096))["code"] == "denied" and not hall.orders
        os.close(near)
        os.close(far)
        hall.door.close()
        hall.selector.close()
