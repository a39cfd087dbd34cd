"""All stages · dispatcher and clients · ask Redis: reconnect, retry once, scripts by digest, blocking reads apart.

A call that loses its connection is made once more on a fresh one: every script is idempotent, so the answer is the
same. Blocking reads have links of their own, so that no hot call ever queues behind one. A call that cannot be made
ends with QueueUnavailable within three times the time-out; what it asked for may have been done all the same.

Redis Cluster: MOVED is followed and remembered. ASK, the answer while a slot is on its way to another node, is followed
by reads only: half of the keys are there by then, and a script that saw one half would take the other for lost. Every
script names a key that never exists (the prefix), so that it gets ASK, and waits, as long as the slot is not whole.
"""

from __future__ import annotations

import asyncio
import hashlib
from importlib.resources import files
from typing import Any

from metamusesd import REDIS_PROTOCOL
from metamusesd.errors import QueueRefused, QueueUnavailable
from metamusesd.queues.redis_address import Address
from metamusesd.queues.redis_link import REPLY_ERROR, Argument, Link, connect
from metamusesd.queues.redis_trouble import ASTRAY, code_of, translate
from metamusesd.queues.redis_way import Way, check_policy, facts_of

SCRIPTS = ("submit", "claim", "renew", "append", "settle", "cancel", "requeue", "reap", "announce",
           "configure", "recount", "position", "push", "revive", "drop", "recall", "forget", "complain")  # fmt: skip
# append stands before settle: see _bring_scripts
PLACED = ("position", "push")  # scripts that take lua/place.lua, too
PROTOCOL = REDIS_PROTOCOL.encode()
BLOCKING_LINKS = 16  # blocking reads at one time; more wait for their turn
HOPS = 5  # redirections of one call
REFUSED = ("denied", "policy")  # trouble that ends a start: the server must be configured otherwise


class RedisDoor:
    """Commands and scripts on the Redis that holds the queue, for many tasks of one event loop."""

    def __init__(self, url: str, prefix: str, timeout_s: float) -> None:
        self.prefix = prefix
        self._way = Way(url, timeout_s)
        self._timeout_s = timeout_s
        self._texts = {name: script_text(name) for name in SCRIPTS}
        self._digests = {name: _digest(text) for name, text in self._texts.items()}
        self._hot: Link | None = None
        self._connecting: asyncio.Task[Link] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._idle: list[Link] = []
        self._busy: set[Link] = set()
        self._turns = asyncio.Semaphore(BLOCKING_LINKS)
        self._closed = False

    def __repr__(self) -> str:
        return f"<RedisDoor {self._way} {self.prefix} {self._hot}>"

    async def open(self) -> None:
        """Check the server and load the scripts. Legal twice, and again after `close`.

        Here, and only here, what the server's configuration forbids is QueueRefused; later it is trouble that passes.
        """
        self._closed = False
        if self._hot is not None:
            self._hot.close()  # the server is checked whenever it is reached
        try:
            await self._agree()
            await self._load()
        except QueueUnavailable as error:
            if error.trouble in REFUSED:
                raise QueueRefused(error.message) from error
            raise

    async def check(self) -> None:
        """Its eviction policy, which anybody may change while it runs."""
        check_policy(facts_of(await self.ask("INFO", "memory")))

    async def _agree(self) -> None:
        """One queue, one form of its keys: a daemon or client of another form must not touch it."""
        key = f"{self.prefix}:protocol"
        found = await self.ask("GET", key)
        if found is None:  # only then: a SET is refused when memory is full, and whoever drains the queue must get in
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
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
        for link in (self._hot, *self._idle, *self._busy):
            if link is not None:
                link.close()
        self._hot, self._idle = None, []

    async def script(self, name: str, *args: Argument) -> Any:
        """One call of lua/`name`.lua on this prefix."""
        reply = await self._send("EVALSHA", self._digests[name], 1, self.prefix, *args)
        if isinstance(reply, REPLY_ERROR):
            return await self._mend(reply, ("EVALSHA", self._digests[name], 1, self.prefix, *args), scripted=True)
        return reply

    async def ask(self, *args: Argument) -> Any:
        """One command that does not block and may be made twice."""
        reply = await self._send(*args)
        if isinstance(reply, REPLY_ERROR):
            return await self._mend(reply, args)
        return reply

    async def block(self, wait_s: float, *args: Argument) -> Any:
        """One command that may block for `wait_s`, on a link of its own. A cancelled wait gives its link up."""
        async with self._turns:
            for _ in range(HOPS):
                link = await self._take()
                reply = await self._on(link, wait_s, args)
                if not isinstance(reply, REPLY_ERROR):
                    self._idle.append(link)
                    return reply
                link.close()
                words = str(reply)
                if words.startswith("ASK "):
                    return await self._asking(words, wait_s, args)
                if not words.startswith("MOVED "):
                    raise translate(reply) from reply
                self._move(words)
            raise translate(reply) from reply

    async def _take(self) -> Link:
        self._idle = [link for link in self._idle if not link.broken]
        return self._idle.pop() if self._idle else await self._connect()

    async def _on(self, link: Link, wait_s: float, args: tuple[Argument, ...]) -> Any:
        """A call on a blocking link; the link is closed unless it answers."""
        self._busy.add(link)
        try:
            return await link.call(*args, wait_s=wait_s)
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

    async def _load(self) -> None:
        await asyncio.gather(*(self.ask("SCRIPT", "LOAD", text) for text in self._texts.values()))

    async def _bring_scripts(self) -> None:
        """All of them, for everybody who misses one, in the order of SCRIPTS: were settle there before append, an end
        could overtake its text. Whoever waits for the same load goes on in the order in which it came."""
        if self._loading is None or self._loading.done():
            self._loading = asyncio.get_running_loop().create_task(self._load())
            self._loading.add_done_callback(_look_at)
        await asyncio.shield(self._loading)

    async def _mend(self, reply: Exception, command: tuple[Argument, ...], *, scripted: bool = False) -> Any:
        """What can be done about an error reply: bring the scripts, go where the queue is. Else raises."""
        for _ in range(HOPS):
            words = str(reply)
            if scripted and words.startswith("NOSCRIPT"):
                await self._bring_scripts()
            elif words.startswith("MOVED "):
                self._move(words)
            elif words.startswith("ASK ") and not scripted:
                return await self._asking(words, 0.0, command)
            else:
                break
            reply = await self._send(*command)
            if not isinstance(reply, REPLY_ERROR):
                return reply
        if self._hot is not None and code_of(str(reply)) in ASTRAY:
            self._way.avoid()
            self._hot.close()
        raise translate(reply) from reply

    def _move(self, words: str) -> None:
        """The queue is on another node: leave every link to this one. A hot link that is there already stays."""
        server = self._way.moved(words)
        if self._hot is not None and self._hot.server != server:
            self._hot.close()
        self._leave_all_but(server)

    async def _asking(self, words: str, wait_s: float, args: tuple[Argument, ...]) -> Any:
        """One read from the node that a key has gone to, before its slot has."""
        link = await connect(self._way.moved(words), self._timeout_s)
        try:
            asking = link.call("ASKING")
            reply = await self._on(link, wait_s, args)
            await asking
        finally:
            link.close()
        if isinstance(reply, REPLY_ERROR):
            raise translate(reply) from reply
        return reply

    async def _reconnect(self) -> Link:
        """The hot link. Everybody who needs a new one waits for the same attempt."""
        if self._hot is not None and not self._hot.broken:
            return self._hot
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.get_running_loop().create_task(self._connect_hot())
            self._connecting.add_done_callback(_look_at)
        connecting = self._connecting
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if connecting.cancelled() and caller is not None and not caller.cancelling():
                raise QueueUnavailable("This queue was closed") from None  # nobody cancelled the caller
            raise

    async def _connect_hot(self) -> Link:
        self._hot = link = await self._connect()
        self._leave_all_but(link.server)
        return link

    async def _connect(self) -> Link:
        self._check_open()
        link = await self._way.connect()
        try:
            self._check_open()
        except QueueUnavailable:
            link.close()
            raise
        return link

    def _check_open(self) -> None:
        if self._closed:
            raise QueueUnavailable("This queue was closed")

    def _leave_all_but(self, server: Address) -> None:
        """Blocking links to a server that is not the queue's any more would wait there for nothing."""
        for link in (*self._idle, *self._busy):
            if link.server != server:
                link.close()


def _look_at(task: asyncio.Task[Any]) -> None:
    """A failure that nobody waits for any more is no failure."""
    if not task.cancelled():
        task.exception()


def _digest(text: str) -> str:
    """The name that Redis gives to a script."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def script_text(name: str) -> str:
    """The published text of a script: lua/common.lua, for some lua/place.lua, then lua/`name`.lua."""
    folder, parts = files("metamusesd.queues") / "lua", ["common", *(["place"] if name in PLACED else []), name]
    return "".join((folder / f"{part}.lua").read_text("utf-8") for part in parts)
