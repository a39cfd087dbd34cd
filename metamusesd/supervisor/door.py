"""Supervisor · the control socket: one JSON line asks, JSON lines answer, the last one has `ok`.

    ─► {"do": "reload"}
    ◄─ {"step": "fast-0 leaves, then its successor starts"}
    ◄─ {"ok": true, "said": "reloaded"}        or {"ok": false, "code": "bad_config", "mistakes": ["tiers.fast…"]}

Only root and the daemon's own user may ask: the kernel says who they are (SO_PEERCRED). Everything is bounded, as on
the health socket; who has asked may wait as long as the answer takes.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metamusesd.supervisor.listeners import listen

MAX_CONNECTIONS = 16
MAX_REQUEST_BYTES = 4096
PATIENCE_S = 5.0  # for the request

Obey = Callable[[dict[str, Any], "Caller"], None]


class Caller:
    """Who asked. `step` and `end` may be called whether they still listen or not."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer: socket.socket | None = peer
        self.request = bytearray()
        self.asked = False
        self.deadline_s = time.monotonic() + PATIENCE_S

    def step(self, text: str) -> None:
        """Something happens on the way."""
        self._send({"step": text})

    def end(self, said: str, **facts: Any) -> None:
        """It is done."""
        self._send({"ok": True, "said": said, **facts}, last=True)

    def refuse(self, code: str, *mistakes: str) -> None:
        """It is not done, and why."""
        self._send({"ok": False, "code": code, "mistakes": list(mistakes)}, last=True)

    def hang_up(self) -> None:
        """Legal twice."""
        if self.peer is not None:
            with contextlib.suppress(OSError):
                self.peer.recv(MAX_REQUEST_BYTES)  # closing over unread bytes would reset the answer away
            self.peer.close()
            self.peer = None

    def _send(self, message: dict[str, Any], last: bool = False) -> None:
        if self.peer is None:
            return
        line = json.dumps(message).encode() + b"\n"
        try:
            whole = self.peer.send(line) == len(line)
        except OSError:
            whole = False  # gone, or it reads nothing: the loop does not wait for it
        if last or not whole:
            self.hang_up()


class ControlDoor:
    """Registers itself with the selector, like the health server."""

    def __init__(self, path: Path, selector: selectors.BaseSelector, obey: Obey) -> None:
        self._selector, self._obey, self._path = selector, obey, path
        self._callers: dict[int, Caller] = {}
        self._listener = listen(path)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def sweep(self) -> None:
        """Forget those who were answered, who went, and who do not ask."""
        now_s = time.monotonic()
        for fd, caller in list(self._callers.items()):
            if caller.peer is None or (not caller.asked and now_s > caller.deadline_s):
                self._forget(fd)

    def close(self) -> None:
        """Hang up on everybody and remove the socket."""
        for fd in list(self._callers):
            self._forget(fd)
        self._selector.unregister(self._listener)
        self._listener.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _accept(self, _events: int) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        self.sweep()
        caller = Caller(peer)
        peer.setblocking(False)
        if not _may_command(peer):
            caller.refuse("denied", "only root and the daemon's own user may do that: use sudo")
        elif len(self._callers) >= MAX_CONNECTIONS:
            caller.refuse("busy", f"{MAX_CONNECTIONS} commands are under way: try again later")
        else:
            self._callers[peer.fileno()] = caller
            self._selector.register(peer, selectors.EVENT_READ, lambda _events: self._read(caller))

    def _read(self, caller: Caller) -> None:
        peer = caller.peer
        if peer is None:
            return
        try:
            data = peer.recv(MAX_REQUEST_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        caller.request += data
        if not data or caller.asked:  # it left, or says more than it should
            self._forget(peer.fileno())
        elif b"\n" in caller.request:
            caller.asked = True
            self._hear(caller)
        elif len(caller.request) > MAX_REQUEST_BYTES:
            caller.refuse("invalid_request", "the request is too long")

    def _hear(self, caller: Caller) -> None:
        try:
            message = json.loads(caller.request)
        except ValueError:
            message = None
        if isinstance(message, dict):
            self._obey(message, caller)
        else:
            caller.refuse("invalid_request", 'this is no request; send one line like {"do": "reload"}')

    def _forget(self, fd: int) -> None:
        caller = self._callers.pop(fd)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(fd)
        caller.hang_up()


def _may_command(peer: socket.socket) -> bool:
    _, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid in (0, os.geteuid())
