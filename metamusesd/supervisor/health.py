"""Supervisor · health over HTTP, on a UNIX socket and perhaps on TCP, in the supervisor's own loop.

One request a connection, GET and HEAD only. Everything is bounded: connections (the oldest makes room for the newest),
request bytes, seconds. A client that is slow, rude or gone costs its own connection and nothing else.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from metamusesd.supervisor.listeners import Listener

MAX_CONNECTIONS = 64
MAX_REQUEST_BYTES = 8192
PATIENCE_S = 5.0
LAST_S = 0.2
ACCEPT_AT_ONCE = 64
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 431: "Too Large", 500: "Error",
            503: "Service Unavailable"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answer:
    """What a path says."""

    status: int
    body: str
    kind: str = "application/json"


class HealthServer:
    """Registers itself with the selector; every key's `data` is a callback that takes the ready events."""

    def __init__(
        self, listeners: Sequence[Listener], selector: selectors.BaseSelector, answer: Callable[[str], Answer | None]
    ) -> None:
        self._selector, self._answer = selector, answer
        self._talks: dict[int, _Talk] = {}  # oldest first, of all listeners
        self._listeners: list[Listener] = []
        for listener in listeners:
            self._open(listener)

    def sweep(self) -> None:
        """Hang up on those who took too long; be there again when somebody has deleted the socket."""
        for listener in [each for each in self._listeners if each.is_lost()]:
            with contextlib.suppress(OSError):  # the directory is gone as well: until it is back
                self._open(listener.renewed())
                self._shut(listener)
                listener.socket.close()
        now_s = time.monotonic()
        for talk in [talk for talk in self._talks.values() if now_s > talk.deadline_s]:
            self._hang_up(talk)

    def close(self) -> None:
        """End all talks, and with them what is ours. Who was let in is answered, if they ask within LAST_S; who waits
        at a listener that systemd keeps is the guest of the next daemon."""
        end_s = time.monotonic() + LAST_S
        for talk in list(self._talks.values()):
            talk.peer.settimeout(max(0.001, end_s - time.monotonic()))
            self._go_on(talk)
            self._hang_up(talk)
        for listener in list(self._listeners):
            self._shut(listener)
            listener.close()

    def _open(self, listener: Listener) -> None:
        self._listeners.append(listener)
        self._selector.register(listener.socket, selectors.EVENT_READ, partial(self._accept, listener.socket))

    def _shut(self, listener: Listener) -> None:
        self._listeners.remove(listener)
        self._selector.unregister(listener.socket)

    def _accept(self, listener: socket.socket, _events: int) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            try:
                peer, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError:  # out of descriptors: make room, else the listener stays readable and the loop spins
                self._make_room()
                return
            peer.setblocking(False)
            if len(self._talks) >= MAX_CONNECTIONS:
                self._make_room()
            talk = self._talks[peer.fileno()] = _Talk(peer, time.monotonic() + PATIENCE_S)
            self._selector.register(peer, selectors.EVENT_READ, lambda _events, talk=talk: self._go_on(talk))

    def _make_room(self) -> None:
        """The oldest talk ends: with its answer if it has asked, without one if it has not."""
        for oldest in list(self._talks.values())[:1]:
            self._go_on(oldest)
            self._hang_up(oldest)

    def _go_on(self, talk: _Talk) -> None:
        try:
            finished = self._write(talk) if talk.out else self._read(talk)
        except BlockingIOError:
            return
        except OSError:
            finished = True
        if finished:
            self._hang_up(talk)

    def _read(self, talk: _Talk) -> bool:
        data = talk.peer.recv(MAX_REQUEST_BYTES)
        talk.request += data
        if b"\r\n\r\n" in talk.request or b"\n\n" in talk.request:
            answer, head_only = self._respond(bytes(talk.request))
        elif len(talk.request) > MAX_REQUEST_BYTES:
            answer, head_only = _error(431, "the request is too large"), False
        else:
            return not data
        talk.out = memoryview(_encode(answer, head_only))
        self._selector.modify(talk.peer, selectors.EVENT_WRITE, self._selector.get_key(talk.peer).data)
        return self._write(talk)

    def _write(self, talk: _Talk) -> bool:
        assert talk.out is not None
        talk.out = talk.out[talk.peer.send(talk.out) :]
        return not talk.out

    def _respond(self, request: bytes) -> tuple[Answer, bool]:
        words = request.split(b"\n", 1)[0].decode("latin-1").split()
        if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[1].startswith("/"):
            return _error(400, "this is not an HTTP request"), False
        method, target, _ = words
        answer = self._answer(target.split("?", 1)[0])
        if answer is None:
            answer = _error(404, "use /livez, /readyz, /status or /metrics")
        elif method not in ("GET", "HEAD"):
            answer = _error(405, "use GET")
        return answer, method == "HEAD"

    def _hang_up(self, talk: _Talk) -> None:
        self._talks.pop(talk.peer.fileno(), None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(talk.peer)
        with contextlib.suppress(OSError):
            talk.peer.setblocking(False)
            talk.peer.recv(8 * MAX_REQUEST_BYTES)  # closing over unread bytes would reset the answer away
        talk.peer.close()


class _Talk:
    """One client."""

    __slots__ = ("deadline_s", "out", "peer", "request")

    def __init__(self, peer: socket.socket, deadline_s: float) -> None:
        self.peer, self.deadline_s = peer, deadline_s
        self.request = bytearray()
        self.out: memoryview | None = None


def _error(status: int, problem: str) -> Answer:
    return Answer(status, f'{{"error": "{problem}"}}\n')


def _encode(answer: Answer, head_only: bool) -> bytes:
    body = answer.body.encode()
    head = (
        f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, '')}\r\nContent-Type: {answer.kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n"
    )
    if answer.status == 405:
        head += "Allow: GET, HEAD\r\n"
    return (head + "\r\n").encode() + (b"" if head_only else body)
