"""Stage 4 · vectors process · from the fork to a served cache, and out again.

A store that is away may stay away: the process is ready all the same, tries again, and lookups fail meanwhile.
Exit codes: 0 asked to leave; 78 (control.EXIT_BAD_CONFIG) the store can never be used as it is; 70 there is no
embedder; 71 one of the loops failed.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from typing import Any

from metamusesd import control
from metamusesd.cache.semantic import Semantic
from metamusesd.child import Child
from metamusesd.config import EMBEDDED
from metamusesd.control import EXIT_BAD_CONFIG, EXIT_BOOT, Birth
from metamusesd.errors import CacheError, EmbedderFailed, StoreFailed, StoreRefused
from metamusesd.log import Logger, get_logger, tick
from metamusesd.vectors.door import Door
from metamusesd.vectors.furnish import furnish
from metamusesd.vectors.row import Row
from metamusesd.vectors.talk import Hooks, Talk
from metamusesd.vectors.vectors import Vectors

BEAT_S, QUIET_BEAT_S = 0.05, 0.5
QUIET_AFTER_S = 10.0  # without a question
RETRY_S, RETRY_MOST_S = 0.5, 15.0
DYING_S, POLL_S = 2.0, 0.1
TELL_S = 2.0  # trouble that comes and goes, a full disk's, is told so often at most


def main(birth: Birth) -> int:
    """The whole life of the vectors process; returns its exit code. Call it in the forked child, on its main thread."""
    log = get_logger(birth.name, pid=os.getpid())
    try:
        semantic = furnish(birth.config)
    except (CacheError, ImportError) as error:
        return fail(birth, log, error)
    return asyncio.run(Boot(birth, semantic, log).run())


def fail(birth: Birth, log: Logger, error: Exception) -> int:
    """Say why there can be no semantic cache; returns the exit code that says the same."""
    shown = error if isinstance(error, CacheError) else EmbedderFailed(f"a library is missing: {error}")
    log.error("no semantic cache", code=shown.code, problem=shown.message)
    control.send(birth.control, {"say": "failed", "error": shown.to_dict(), "permanent": True})
    return EXIT_BAD_CONFIG if isinstance(shown, StoreRefused) else EXIT_BOOT


class Boot:
    """Wires the parts and ends with the exit code."""

    def __init__(self, birth: Birth, semantic: Semantic, log: Logger) -> None:
        self._birth, self._semantic, self._log = birth, semantic, log
        self._row = Row(birth.board.vectors, semantic, remote=birth.config.cache.qdrant_url != EMBEDDED)
        self._vectors = Vectors(semantic, log)
        self._hooks = Hooks(lambda _talk: True, self._vectors.ask, self._parted)
        self._door = Door(birth.config.cache_socket, Hooks(lambda _: True, self._vectors.ask, lambda _: None), log)
        self._pipe: Talk | None = None
        self._tell_s = 0.0  # not again before
        self._told = ""  # the trouble that the supervisor knows of
        semantic.upkeep.tending = self._row.tending

    async def run(self) -> int:
        """Until asked to leave (0), or until something cannot go on."""
        child = self._child = Child(self._birth, self._log)
        try:
            if not await self._open_first():
                self._child.start(self._reopen(), "open")
        except StoreRefused as error:
            return fail(self._birth, self._log, error)
        await self._open_door()
        self._row.beat()
        child.listen(self._heard, lambda: child.leave(0))
        self._child.start(self._beat(), "beat")
        self._child.start(self._semantic.tend(), "tend")
        self._child.say({"say": "ready"})
        try:
            return await child.exit
        finally:
            await self._close()

    async def _open_first(self) -> bool:
        """As `_open`. DANGER: the process of a daemon that was killed a moment ago may still be dying, and hold the
        store; so a refusal counts only when it lasts."""
        end_s = time.monotonic() + DYING_S
        while True:
            try:
                return await self._open()
            except StoreRefused:
                if time.monotonic() > end_s:
                    raise
                await asyncio.sleep(POLL_S)

    async def _open(self) -> bool:
        """False: not now. Raises StoreRefused."""
        try:
            await self._semantic.open()
            return True
        except StoreFailed as error:
            self._log.warning("the store cannot be opened now", problem=error.message)
            return False

    async def _reopen(self) -> None:
        """Again and again, until it is open or refused."""
        tries = 0
        try:
            while True:
                pause_s = min(RETRY_MOST_S, RETRY_S * 2.0**tries)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
                if await self._open():
                    self._log.info("the store is open")
                    return
                tries = min(tries + 1, 10)
        except StoreRefused as error:
            self._child.leave(fail(self._birth, self._log, error))

    async def _open_door(self) -> None:
        """Without it operators' commands do not work, and the cache does."""
        try:
            await self._door.open()
        except OSError as error:
            self._log.error("no cache socket", problem=str(error))

    async def _beat(self) -> None:
        """Show that the loop turns, and tell what is wrong with the store or the embedder. More seldom while nobody
        asks: an idle daemon sleeps."""
        asked, asked_s = 0, time.monotonic()
        while True:
            self._row.beat()
            tick()
            if self._semantic.asked != asked or self._semantic.trouble:
                asked, asked_s = self._semantic.asked, time.monotonic()
            if self._semantic.trouble != self._told and time.monotonic() >= self._tell_s:
                self._tell(self._semantic.trouble)
            await asyncio.sleep(BEAT_S if time.monotonic() - asked_s < QUIET_AFTER_S else QUIET_BEAT_S)

    def _tell(self, trouble: str) -> None:
        if not self._child.say({"say": "trouble", "problem": trouble}):
            return  # the next beat tries again
        self._tell_s = time.monotonic() + TELL_S
        self._told = trouble
        if trouble:
            self._log.warning("lookups fail", problem=trouble)
        else:
            self._log.info("lookups work again")

    async def _close(self) -> None:
        """Hang up on everybody, then write everything out."""
        self._door.close()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()
        await self._child.stop()
        await self._vectors.close()
        await self._semantic.close()

    # the supervisor

    def _heard(self, message: dict[str, Any], fd: int | None) -> None:
        if message.get("do") == "vectors" and fd is not None:
            self._child.start(self._connect(int(message["epoch"]), fd), "pipe")
        elif fd is not None:
            os.close(fd)

    async def _connect(self, epoch: int, fd: int) -> None:
        """A fresh pipe to the dispatcher; the one before it is over."""
        older, self._pipe = self._pipe, Talk(epoch, self._hooks, self._log)
        self._row.epoch = epoch
        pipe = self._pipe
        if older is not None:
            older.close()
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: pipe, sock=sock)
        self._log.info("linked", epoch=epoch)

    def _parted(self, talk: Talk) -> None:
        """The pipe broke, by the dispatcher's death or by garbage: whoever lives gets a new one."""
        if talk is self._pipe:
            self._pipe, self._row.epoch = None, 0
            self._child.say({"say": "relink", "epoch": talk.epoch})
