"""All stages · dispatcher and clients · one connection to Redis: bytes out, replies in, a deadline on everything.

The only file that knows a Redis library: hiredis packs commands and parses replies. Between them stands an asyncio
protocol of our own, because the way through redis-py's client costs 51 µs for a PING and this one 14 (same machine,
UNIX socket). Concurrent calls share the connection: each writes its command at once; replies come in the same order.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis

from metamusesd.errors import QueueUnavailable
from metamusesd.queues.redis_address import Address
from metamusesd.queues.redis_trouble import translate

Argument = str | bytes | int | float
NO_LINGER = struct.pack("ii", 1, 0)
REPLY_ERROR = hiredis.ReplyError
_pack = cast(Callable[[tuple[Argument, ...]], bytes], hiredis.pack_command)  # annotated for one argument only


class Link(asyncio.Protocol):
    """One connection. `call` may be used by many tasks at once; replies come in order. Broken once, it stays broken."""

    def __init__(self, timeout_s: float, server: Address) -> None:
        self.server = server
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader()
        self._pending: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self.broken: Exception | None = None

    def __repr__(self) -> str:
        return f"<Link {self.server} {self.broken or 'open'}, {len(self._pending)} replies owed>"

    def call(self, *args: Argument, wait_s: float = 0.0) -> asyncio.Future[Any]:
        """Send a command now; the future gets the reply (an error reply as a value) or ConnectionError, and is never
        done later than the link's time-out plus `wait_s`, the time for which the command itself may block."""
        packed = _pack(args)  # first: it may raise, and must not leave a reply owed that never comes
        future = self._loop.create_future()
        if self._transport is None:
            future.set_exception(ConnectionError("closed"))
            return future
        self._pending.append((self._loop.time() + self._timeout_s + wait_s, future))
        self._transport.write(packed)
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s / 4, self._look)
        return future

    def close(self, error: Exception | None = None) -> None:
        """Break the connection; every reply still owed becomes an error. Legal twice."""
        self.broken = self.broken or error or ConnectionError("closed")
        if self._transport is not None:
            if isinstance(self.broken, TimeoutError):
                self._forget_unsent(self._transport)
            self._transport.abort()
            self._transport = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._pending:
            _, future = self._pending.popleft()
            if not future.done():
                future.set_exception(self.broken)

    def _forget_unsent(self, transport: asyncio.Transport) -> None:
        """A command given up must not arrive later: without this the kernel goes on sending what it still holds, and
        a cut cable that is mended would let old commands in after the newer ones of the next connection."""
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)

    def _look(self) -> None:
        """Every quarter of the time-out while replies are owed: one timer for all calls, instead of one a call."""
        self._watch = None
        if self._pending and min(until for until, _ in self._pending) < self._loop.time():
            self.close(TimeoutError(f"no answer within {self._timeout_s:g} s"))
        elif self._pending:
            self._watch = self._loop.call_later(self._timeout_s / 4, self._look)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports are not asyncio's by class
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                _, future = self._pending.popleft()
                if not future.done():
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self.close(ConnectionError(f"garbage from the server: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(exc or ConnectionError("the server closed the connection"))


async def connect(address: Address, timeout_s: float) -> Link:
    """A ready connection: authenticated, database selected. Raises QueueUnavailable within the time."""
    link = None
    try:
        async with asyncio.timeout(timeout_s):
            link = await _reach(address, timeout_s)
            await _enter(link, address)
            return link
    except (OSError, TimeoutError) as error:
        _drop(link)
        words = str(error) or f"no answer within {timeout_s:g} s"
        raise QueueUnavailable(f"Redis at {address} cannot be reached: {words}") from error
    except BaseException:
        _drop(link)
        raise


async def _reach(address: Address, timeout_s: float) -> Link:
    loop = asyncio.get_running_loop()
    if address.path:
        _, link = await loop.create_unix_connection(lambda: Link(timeout_s, address), address.path)
    else:
        _, link = await loop.create_connection(
            lambda: Link(timeout_s, address), address.host, address.port, ssl=address.tls
        )
    return link


async def _enter(link: Link, address: Address) -> None:
    if address.password:
        await _greet(link, "AUTH", *filter(None, (address.username, address.password)))
    if address.db:
        await _greet(link, "SELECT", address.db)


async def _greet(link: Link, *command: Argument) -> None:
    reply = await link.call(*command)
    if isinstance(reply, REPLY_ERROR):
        raise translate(reply) from reply


def _drop(link: Link | None) -> None:
    if link is not None:
        link.close()
