"""A relay in front of Redis that cuts a connection at an exact place: before a request, before or after a reply.

It parses nothing but the borders of RESP values. Requests are counted over all connections, in the order in which they
come; the n-th reply is that to the n-th request.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from pathlib import Path


class Cut(enum.Enum):
    """Where. In the first case Redis never hears of the request; in the others it has done it."""

    BEFORE_REQUEST = "before the request"
    BEFORE_REPLY = "before the reply"
    AFTER_REPLY = "after the reply"


class CuttingProxy:
    """`cuts` holds what is to be done at which request, counted from 1; `cut` counts what was done.

    `swallow` takes requests and passes nothing on, as a half-open connection does."""

    def __init__(self, server: Path, path: Path, port: int = 0) -> None:
        self._server, self.path, self.port = server, path, port
        self.cuts: dict[int, Cut] = {}
        self.cut, self.requests, self.connections = 0, 0, 0
        self.swallow = False
        self._pairs: set[_Pair] = set()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def __aenter__(self) -> CuttingProxy:
        loop = asyncio.get_running_loop()
        self._relay = await loop.create_unix_server(lambda: _Pair(self), str(self.path))
        self._tcp = await loop.create_server(lambda: _Pair(self), "127.0.0.1", self.port)
        self.port = self._tcp.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in (self._relay, self._tcp):
            server.close()
        for pair in list(self._pairs):
            pair.cut()

    def cut_next(self, *cuts: Cut) -> None:
        """The next requests, in order."""
        self.cuts = {self.requests + n: cut for n, cut in enumerate(cuts, start=1)}


class _Pair(asyncio.Protocol):
    """One connection of a client and the one to Redis that serves it."""

    def __init__(self, proxy: CuttingProxy) -> None:
        self._proxy = proxy
        self._far = _Far(self)
        self._numbers: deque[int] = deque()  # requests without a reply yet
        self._requests, self._replies = bytearray(), bytearray()
        self._near: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._near = transport  # type: ignore[assignment]
        self._proxy._pairs.add(self)
        self._proxy.connections += 1
        self._reaching = asyncio.ensure_future(self._reach())

    async def _reach(self) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self._far, str(self._proxy._server))
        except OSError:
            self.cut()
        self.data_received(b"")

    def data_received(self, data: bytes) -> None:
        self._requests += data
        while self._far.transport and not self._proxy.swallow and (end := frame_end(self._requests, 0)):
            self._proxy.requests += 1
            if self._is(self._proxy.requests, Cut.BEFORE_REQUEST):
                return self.cut()
            self._numbers.append(self._proxy.requests)
            self._far.transport.write(bytes(self._requests[:end]))
            del self._requests[:end]
        return None

    def replied(self, data: bytes) -> None:
        self._replies += data
        while self._near is not None and (end := frame_end(self._replies, 0)):
            number = self._numbers.popleft()
            if self._is(number, Cut.BEFORE_REPLY):
                return self.cut()
            self._near.write(bytes(self._replies[:end]))
            del self._replies[:end]
            if self._is(number, Cut.AFTER_REPLY):
                return self.cut(flush=True)
        return None

    def _is(self, number: int, cut: Cut) -> bool:
        if self._proxy.cuts.get(number) is not cut:
            return False
        self._proxy.cut += 1
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.cut()

    def cut(self, flush: bool = False) -> None:
        self._proxy._pairs.discard(self)
        near, self._near = self._near, None
        if near is not None:
            near.close() if flush else near.abort()
        far, self._far.transport = self._far.transport, None
        if far is not None:
            far.close()  # what was sent is still executed


class _Far(asyncio.Protocol):
    def __init__(self, pair: _Pair) -> None:
        self._pair = pair
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        if self._pair._near is None:
            transport.close()

    def data_received(self, data: bytes) -> None:
        self._pair.replied(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pair.cut()


def frame_end(data: bytearray, start: int) -> int:
    """Where the RESP value that begins at `start` ends; 0: it is not complete yet."""
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return 0
    end = line_end + 2
    kind, head = data[start : start + 1], bytes(data[start + 1 : line_end])
    if kind == b"$" and int(head) >= 0:
        end += int(head) + 2
        return end if end <= len(data) else 0
    if kind == b"*":
        for _ in range(int(head)):
            end = frame_end(data, end)
            if not end:
                return 0
    return end
