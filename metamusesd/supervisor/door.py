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
import selectors
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metamusesd.log import Logger
from metamusesd.sockets import is_welcome, peer_of
from metamusesd.supervisor.listeners import listen

MAX_UNASKED, MAX_WAITING = 16, 64  # who has not asked yet; who waits for an answer
MAX_REQUEST_BYTES = 4096
PATIENCE_S = 5.0  # for the request

Obey = Callable[[dict[str, Any], "Caller"], None]


class Caller:
    """Who asked. `step` and `end` may be called whether they still listen or not."""

    def __init__(self, peer: socket.socket, parting: Callable[[Caller], None] = lambda caller: None) -> None:
        self.peer: socket.socket | None = peer
        self._parting = parting
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
        """Legal twice. DANGER: the selector must forget the descriptor before it is closed: the same turn of the loop
        may give its number to somebody else, and registering that one would end the supervisor."""
        if self.peer is not None:
            self._parting(self)
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

    def __init__(self, path: Path, selector: selectors.BaseSelector, obey: Obey, log: Logger) -> None:
        self._selector, self._obey, self._path, self._log = selector, obey, path, log
        self._callers: dict[int, Caller] = {}
        self._listener = listen(path)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def sweep(self) -> None:
        """Hang up on those who do not ask."""
        now_s = time.monotonic()
        for caller in list(self._callers.values()):
            if not caller.asked and now_s > caller.deadline_s:
                caller.hang_up()

    def close(self) -> None:
        """Hang up on everybody and remove the socket."""
        for caller in list(self._callers.values()):
            caller.hang_up()
        self._selector.unregister(self._listener)
        self._listener.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _accept(self, _events: int) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return
        peer.setblocking(False)
        caller = Caller(peer, self._forget)
        asked = sum(each.asked for each in self._callers.values())
        if not is_welcome(peer_of(peer)[1]):
            caller.refuse("denied", "only root and the daemon's own user may do that: use sudo")
        elif len(self._callers) - asked >= MAX_UNASKED or asked >= MAX_WAITING:
            caller.refuse("busy", f"{len(self._callers)} commands are under way: try again later")
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
        if caller.asked and not data:  # it has said all, or it is gone: the answer will show
            self._selector.unregister(peer)
        elif caller.asked or not data:  # it says more than it should; it left
            caller.hang_up()
        elif b"\n" in caller.request:
            caller.asked = True
            self._hear(caller)
        elif len(caller.request) > MAX_REQUEST_BYTES:
            caller.refuse("invalid_request", "the request is too long")

    def _hear(self, caller: Caller) -> None:
        try:
            message = json.loads(caller.request)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            caller.refuse("invalid_request", 'this is no request; send one line like {"do": "reload"}')
            return
        try:
            self._obey(message, caller)
        except Exception as error:  # whatever is asked, it must not end the supervisor
            self._log.error("an order failed", order=message.get("do"), problem=f"{type(error).__name__}: {error}")
            caller.refuse("internal_error", f"{type(error).__name__}: {error}")

    def _forget(self, caller: Caller) -> None:
        """It is about to be closed."""
        if caller.peer is not None:
            self._callers.pop(caller.peer.fileno(), None)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(caller.peer)
