"""Supervisor · the sockets on which health is answered: those of a socket unit, those that systemd has kept, our own.

    name           is
    health         a socket unit's, on a UNIX socket     used as it is: neither removed nor given other rights
    metrics        a socket unit's, on TCP               used as it is, whatever address it has: the operator's word
    health.kept    ours, made in a life before this one and kept by systemd, so that a restart refuses no probe
    metrics.kept   the same on TCP; used only while the configuration still asks for its address

A socket unit's socket goes before what is kept, and that before a new one. What is kept leads nowhere once its path is
gone or somebody else has taken it; then it is given up.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from metamusesd.config import Config, loopback
from metamusesd.log import Logger
from metamusesd.sockets import bind
from metamusesd.supervisor.systemd import Notifier, inherited

BACKLOG = 256
HEALTH, METRICS, KEPT = "health", "metrics", ".kept"


@dataclass(slots=True)
class Listener:
    """One of them. `path`: of a UNIX socket that we have made, which is ours to make again and to remove."""

    socket: socket.socket
    path: Path | None = None
    notifier: Notifier | None = None

    def is_lost(self) -> bool:
        """Somebody has deleted its path: nobody finds it any more."""
        return self.path is not None and not self.path.exists()

    def renewed(self) -> Listener:
        """Another one in its place. OSError: the directory is gone as well."""
        assert self.path is not None
        fresh = Listener(listen(self.path), self.path, self.notifier)
        if self.notifier is not None:
            self.notifier.forget(HEALTH + KEPT)
            self.notifier.keep(HEALTH + KEPT, fresh.socket)
        return fresh

    def close(self) -> None:
        """Remove its path, unless systemd keeps it for the next life: then the path goes with the runtime directory."""
        self.socket.close()
        if self.path is not None and (self.notifier is None or not self.notifier.is_heard):
            with contextlib.suppress(OSError):
                self.path.unlink()


def open_listeners(config: Config, notifier: Notifier, log: Logger) -> list[Listener]:
    """All that this daemon shall have. OSError: one could not be made, and which."""
    given = _sorted(inherited(), log)
    found = [Listener(each) for each in given.pop(HEALTH, [])]
    found = found or [_unix(config.health_socket, given.pop(HEALTH + KEPT, []), notifier)]
    on_tcp = [Listener(each) for each in given.pop(METRICS, [])]
    if config.health.tcp and not on_tcp:
        on_tcp = [_tcp(*loopback(config.health.tcp), given.pop(METRICS + KEPT, []), notifier)]
    for name, unwanted in given.items():
        _give_up(name, unwanted, notifier)
    for listener in on_tcp:
        address, port, *_ = listener.socket.getsockname()
        log.info("health listens", address=address, port=port)
    return found + on_tcp


def _sorted(given: list[tuple[str, socket.socket]], log: Logger) -> dict[str, list[socket.socket]]:
    """By name. The family goes before the name that a unit gives: it may have none. What nobody can connect to is
    closed."""
    found: dict[str, list[socket.socket]] = {}
    for name, each in given:
        if _listens(each):
            each.setblocking(False)
            kind = HEALTH if each.family == socket.AF_UNIX else METRICS
            found.setdefault(kind + (KEPT if name.endswith(KEPT) else ""), []).append(each)
        else:
            log.warning("a socket of systemd's is of no use", name=name, problem="it is not a listening stream socket")
            each.close()
    return found


def _give_up(name: str, kept: list[socket.socket], notifier: Notifier) -> None:
    for each in kept:
        each.close()
    if kept:
        notifier.forget(name)


def _listens(each: socket.socket) -> bool:
    try:
        return each.type == socket.SOCK_STREAM and bool(each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def _unix(path: Path, kept: list[socket.socket], notifier: Notifier) -> Listener:
    if len(kept) == 1 and kept[0].getsockname() == os.fspath(path) and _leads_somewhere(path):
        return Listener(kept[0], path, notifier)
    _give_up(HEALTH + KEPT, kept, notifier)
    made = Listener(listen(path), path, notifier)
    notifier.keep(HEALTH + KEPT, made.socket)
    return made


def _leads_somewhere(path: Path) -> bool:
    """Somebody listens at this path, and the state directory's lock says that it is nobody but systemd for us."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # so many wait for us that there is no room for another
        except OSError:
            return False
        return True


def _tcp(address: str, port: int, kept: list[socket.socket], notifier: Notifier) -> Listener:
    if len(kept) == 1 and kept[0].getsockname()[:2] == (address, port):
        return Listener(kept[0])
    _give_up(METRICS + KEPT, kept, notifier)
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setblocking(False)
    try:
        made.bind((address, port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        reason = (
            f"health.tcp: {address}:{port} cannot be listened on ({error.strerror}); free it or choose another port"
        )
        raise OSError(error.errno, reason) from error
    notifier.keep(METRICS + KEPT, made)
    return Listener(made)


def listen(path: Path) -> socket.socket:
    """At `path`, for our user and its group."""
    listener = bind(path, 0o660)
    listener.listen(BACKLOG)
    return listener
