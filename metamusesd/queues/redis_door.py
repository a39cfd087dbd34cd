"""All stages · dispatcher and clients · ask Redis: reconnect, retry once, scripts by digest, blocking reads apart.

A call that loses its connection is made once more on a fresh one: every script is idempotent, so the answer is the
same. Blocking reads have links of their own, so that no hot call ever queues behind one.
"""

from __future__ import annotations

import asyncio
import hashlib
from importlib.resources import files
from typing import Any

from metamusesd.errors import QueueRefused, QueueUnavailable
from metamusesd.queues.redis_link import REPLY_ERROR, Argument, Link, connect, parse_address, translate

SCRIPTS = ("submit", "claim", "renew", "append", "settle", "cancel", "requeue", "reap", "announce",
           "position", "push", "revive", "drop")  # fmt: skip
PROTOCOL = b"1"  # the form of the keys; change it with any change that older scripts would trip over
BLOCKING_LINKS = 16  # blocking reads at one time; more wait for their turn


class RedisDoor:
    """Commands and scripts on one Redis server, for many tasks of one event loop."""

    def __init__(self, url: str, prefix: str, timeout_s: float) -> None:
        self.prefix = prefix
        self._address = parse_address(url)
        self._timeout_s = timeout_s
        self._texts = {name: script_text(name) for name in SCRIPTS}
        self._digests = {name: _digest(text) for name, text in self._texts.items()}
        self._hot: Link | None = None
        self._connecting = asyncio.Lock()
        self._idle: list[Link] = []
        self._busy: set[Link] = set()
        self._turns = asyncio.Semaphore(BLOCKING_LINKS)
        self._closed = False

    def __repr__(self) -> str:
        return f"<RedisDoor {self._address} {self.prefix} {self._hot}>"

    async def open(self) -> None:
        """Check the server and load the scripts. Legal twice, and again after `close`."""
        self._closed = False
        _check_server(await self.ask("INFO"))
        for text in self._texts.values():
            await self.ask("SCRIPT", "LOAD", text)
        await self._agree()

    async def _agree(self) -> None:
        """One queue, one form of its keys: a daemon or client of another form must not touch it."""
        key = f"{self.prefix}:protocol"
        await self.ask("SET", key, PROTOCOL, "NX")
        found = await self.ask("GET", key)
        if found != PROTOCOL:
            raise QueueRefused(
                f"the queue {self.prefix} speaks protocol {(found or b'?').decode()}, "
                f"this program {PROTOCOL.decode()}; use one version everywhere, or another redis.prefix"
            )

    def close(self) -> None:
        """Break all connections; calls under way end with QueueUnavailable. Legal twice."""
        self._closed = True
        for link in (self._hot, *self._idle, *self._busy):
            if link is not None:
                link.close()
        self._hot, self._idle = None, []

    async def script(self, name: str, *args: Argument) -> Any:
        """One call of lua/`name`.lua on this prefix."""
        reply = await self._send("EVALSHA", self._digests[name], 1, self.prefix, *args)
        if isinstance(reply, REPLY_ERROR):
            if not str(reply).startswith("NOSCRIPT"):
                raise self._refused(reply) from reply
            reply = await self.ask("EVAL", self._texts[name], 1, self.prefix, *args)
        return reply

    async def ask(self, *args: Argument) -> Any:
        """One command that does not block and may be made twice."""
        reply = await self._send(*args)
        if isinstance(reply, REPLY_ERROR):
            raise self._refused(reply) from reply
        return reply

    async def block(self, wait_s: float, *args: Argument) -> Any:
        """One command that may block for `wait_s`, on a link of its own. A cancelled wait gives its link up."""
        async with self._turns:
            self._idle = [link for link in self._idle if not link.broken]
            link = self._idle.pop() if self._idle else await self._connect()
            self._busy.add(link)
            try:
                reply = await link.call(*args, wait_s=wait_s)
                if isinstance(reply, REPLY_ERROR):
                    raise translate(reply) from reply
                self._idle.append(link)
                return reply
            except BaseException as error:
                link.close()
                if isinstance(error, OSError | TimeoutError):
                    raise translate(error) from error
                raise
            finally:
                self._busy.discard(link)

    async def _send(self, *args: Argument) -> Any:
        link = self._hot
        if link is None or link.broken:
            link = await self._reconnect()
        try:
            return await link.call(*args)
        except TimeoutError as error:
            raise translate(error) from error
        except OSError:
            link = await self._reconnect()
        try:
            return await link.call(*args)
        except (OSError, TimeoutError) as error:
            raise translate(error) from error

    async def _reconnect(self) -> Link:
        async with self._connecting:
            if self._hot is None or self._hot.broken:
                self._hot = await self._connect()
            return self._hot

    async def _connect(self) -> Link:
        if self._closed:
            raise QueueUnavailable("This queue was closed")
        return await connect(self._address, self._timeout_s)

    def _refused(self, reply: Exception) -> Exception:
        """A read-only server was a primary once: leave it, its name may lead to the new one."""
        if str(reply).startswith("READONLY") and self._hot is not None:
            self._hot.close()
        return translate(reply)


def _digest(text: str) -> str:
    """The name that Redis gives to a script."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def script_text(name: str) -> str:
    """The published text of a script: lua/common.lua, then lua/`name`.lua."""
    folder = files("metamusesd.queues") / "lua"
    return (folder / "common.lua").read_text("utf-8") + (folder / f"{name}.lua").read_text("utf-8")


def _check_server(info: bytes) -> None:
    """Version and eviction policy, from INFO because managed services forbid CONFIG."""
    facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    version = facts.get("redis_version", "0.0")
    if tuple(int(part) for part in version.split(".")[:2]) < (6, 2) and "valkey_version" not in facts:
        raise QueueRefused(f"Redis {version} is too old; use Redis 6.2 or newer, or Valkey")
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise QueueRefused(f"maxmemory-policy is {policy}: jobs would vanish when memory is full; set it to noeviction")
