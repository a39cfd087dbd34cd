"""All stages · dispatcher and clients · one connection to Redis: bytes out, replies in, a deadline on everything.

The only file that knows a Redis library: hiredis packs commands and parses replies. Between them stands an asyncio
protocol of our own, because the way through redis-py's client costs 51 µs for a PING and this one 14 (same machine,
UNIX socket). Concurrent calls share the connection: each writes its command at once; replies come in the same order.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

from metamusesd.errors import ConfigError, InvalidRequest, MetamusesdError, QueueRefused, QueueUnavailable

Argument = str | bytes | int | float
REFUSALS = ("NOAUTH", "WRONGPASS", "NOPERM", "DENIED")
REPLY_ERROR = hiredis.ReplyError
_pack = cast(Callable[[tuple[Argument, ...]], bytes], hiredis.pack_command)  # annotated for one argument only


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis server is and how to enter. `path`: a UNIX socket, else host and port."""

    path: str = ""
    host: str = "localhost"
    port: int = 6379
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


def parse_address(url: str) -> Address:
    """`redis://[user:password@]host[:port][/db]`, `rediss://…` (TLS) or `unix://[user:password@]/path[?db=0]`."""
    try:
        parts = urlsplit(url)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if parts.scheme == "unix":
            return Address(path=unquote(parts.path), db=int(query.get("db", 0)), username=user, password=password)
        if parts.scheme not in ("redis", "rediss"):
            raise ValueError(f"unknown scheme {parts.scheme!r}")
        db = int(query.get("db") or parts.path.strip("/") or 0)
        tls = _tls(query) if parts.scheme == "rediss" else None
        return Address("", parts.hostname or "localhost", parts.port or 6379, db, user, password, tls)
    except (ValueError, OSError) as error:
        raise ConfigError(f"redis.url: {error}; give redis://host:port/db, rediss://… or unix:///path") from error


def _tls(query: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
    if query.get("ssl_cert_reqs") == "none":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if "ssl_certfile" in query:
        context.load_cert_chain(query["ssl_certfile"], query.get("ssl_keyfile"))
    return context


def translate(error: Exception) -> MetamusesdError:
    """What our callers are told about a reply or a connection that failed."""
    text = str(error) or type(error).__name__
    code, _, rest = text.partition(" ")
    if code == "INVALID" and rest.count("|") == 2:
        return InvalidRequest(*rest.split("|"))
    if code in REFUSALS:
        return QueueRefused(f"Redis refuses this user: {text}; check user and password in redis.url")
    return QueueUnavailable(f"The job queue cannot be reached: {text}")


class Link(asyncio.Protocol):
    """One connection. `call` may be used by many tasks at once; replies come in order. Broken once, it stays broken."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader()
        self._pending: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self.broken: Exception | None = None

    def __repr__(self) -> str:
        return f"<Link {self.broken or 'open'}, {len(self._pending)} replies owed>"

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
            self._transport.abort()
            self._transport = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._pending:
            _, future = self._pending.popleft()
            if not future.done():
                future.set_exception(self.broken)

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
    """A ready connection: authenticated, database selected. Raises QueueUnavailable or QueueRefused within the time."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            if address.path:
                _, link = await loop.create_unix_connection(lambda: Link(timeout_s), address.path)
            else:
                _, link = await loop.create_connection(
                    lambda: Link(timeout_s), address.host, address.port, ssl=address.tls
                )
    except (OSError, TimeoutError) as error:
        raise QueueUnavailable(f"Redis at {address} cannot be reached: {error or 'no answer'}") from error
    try:
        await _enter(link, address)
    except BaseException:
        link.close()
        raise
    return link


async def _enter(link: Link, address: Address) -> None:
    greeting: list[Sequence[Argument]] = []
    if address.password:
        greeting.append(("AUTH", *filter(None, (address.username, address.password))))
    if address.db:
        greeting.append(("SELECT", address.db))
    for command in greeting:
        try:
            reply = await link.call(*command)
        except (OSError, TimeoutError) as error:
            raise translate(error) from error
        if isinstance(reply, REPLY_ERROR):
            raise translate(reply) from reply
