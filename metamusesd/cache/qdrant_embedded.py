"""Stage 4 · vectors process · the store on disk, for one host: Qdrant Edge behind a thread of its own.

What is acknowledged survives the death of the process (a write-ahead log that is not synced); a power cut may cost what
was written since the last flush. Compaction fills a second shard beside the first and then names it in store.json:
whenever the process dies, that file names a whole shard (home.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec.structs import replace

from metamusesd.cache import compaction
from metamusesd.cache.base import DIMENSION, Entry, Labels, Neighbour
from metamusesd.cache.compaction import Compaction
from metamusesd.cache.edge import Shard
from metamusesd.cache.home import Home, Notes
from metamusesd.errors import StoreBroken, StoreFailed

if TYPE_CHECKING:
    from metamusesd.cache.base import Vector

R = TypeVar("R")
BATCH = 200  # entries removed in one go, 4 ms, so that searches get in between
FLUSH_S, FLUSH_WRITES = 30.0, 1000  # whichever comes first; a flush after more stalls searches longer
TEND_S = 0.25  # a turn of compaction; searches get in between its slices


class EmbeddedStore:
    """Implements Store in a directory, by habit named `space_name(collection, identity)`. Call it from one loop.

    A directory that is removed under it, or a shard that panics, fails every call until `tend` opens it anew. Damaged
    files, as a power cut leaves them, are set aside in `broken`: they are a cache's.
    """

    def __init__(
        self, directory: Path, dimension: int = DIMENSION, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._home, self._clock_s, self._dimension = Home(directory), clock_s, dimension
        self._notes = Notes(dimension=dimension)
        self._thread: ThreadPoolExecutor | None = None
        self._shard: Shard | None = None
        self._wanted = False  # open it again, whatever happens to it
        self._inode = 0  # of the shard's files, as they were when it was opened
        self._compaction: Compaction | None = None
        self._retired: Shard | None = None  # whose place a compaction's has taken
        self._written, self._flushed_s = 0, 0.0  # writes since the last flush, and when that was
        self._facts = {
            "entries": 0,
            "bytes": 0,
            "compactions": 0,
            "compactions_failed": 0,
            "reopened": 0,
            "set_aside": 0,
        }

    async def open(self) -> None:
        """As promised by Store. Takes 0.3 s at 100 000 entries."""
        self._thread = self._thread or ThreadPoolExecutor(1, "vector-store")
        await self._in_thread(self._open)
        self._wanted = True

    async def close(self) -> None:
        """As promised by Store."""
        self._wanted = False
        if self._thread is None:
            return
        try:
            await self._in_thread(self._close)
        finally:
            thread, self._thread = self._thread, None
            if thread is not None:
                thread.shutdown(wait=False)

    async def put(self, entries: Sequence[tuple[Entry, Vector]]) -> None:
        """As promised by Store; 0.1 ms an entry."""
        await self._run(lambda _: self._write(len(entries), lambda shard: shard.put(entries)))

    async def search(
        self, vector: Vector, partitions: Sequence[str], floor: float, count: int, now_ms: int
    ) -> list[Neighbour]:
        """As promised by Store; scores are within 0.0005 of the exact ones."""
        wanted = frozenset(partitions)
        return await self._run(lambda shard: shard.search(vector, wanted, floor, count, now_ms))

    async def get(self, id: str) -> Entry | None:
        """As promised by Store."""
        return await self._run(lambda shard: shard.get(id))

    async def touch(self, ids: Collection[str], used_ms: int) -> None:
        """As promised by Store; 0.03 ms an entry."""
        await self._set(ids, {"used_ms": used_ms})

    async def mark(self, id: str, *, bar: float, complaints: int) -> None:
        """As promised by Store."""
        await self._set([id], {"bar": bar, "complaints": complaints})

    async def drop(self, ids: Collection[str]) -> None:
        """As promised by Store."""
        await self._run(lambda _: self._remove(list(ids)))

    async def purge(self, labels: Labels) -> int:
        """As promised by Store."""
        return await self._remove_while(lambda shard: shard.labelled(labels, BATCH))

    async def sweep(self, now_ms: int, most: int) -> int:
        """As promised by Store."""
        expired = await self._remove_while(lambda shard: shard.expired(now_ms, BATCH))
        return expired + await self._remove_while(lambda shard: shard.oldest(min(BATCH, shard.count() - most)))

    async def count(self) -> int:
        """As promised by Store."""
        return await self._run(lambda shard: shard.count())

    async def tend(self) -> bool:
        """Open anew what has failed; compact for TEND_S; flush. No step is longer than a flush."""
        if self._wanted and (self._shard is None or not self._is_whole()):
            await self._in_thread(self._reopen)
            return True
        until_s = self._clock_s() + TEND_S
        while compacted := await self._run(lambda _: self._compact()):
            if self._compaction is None or self._clock_s() >= until_s:
                break
        if self._retired is not None:  # 50 ms each, so that searches get in between
            await self._run(lambda _: self._close_retired())
            await asyncio.to_thread(self._home.clear, self._notes.shard)
        return await self._run(lambda _: self._flush(FLUSH_S)) or compacted

    def statistics(self) -> Mapping[str, Any]:
        """Facts for people. Cheap: `entries` and `bytes` are those of the last flush."""
        shard = {"shard": self._notes.shard, "dead": self._notes.dead, "compacting": self._compaction is not None}
        where = {"kind": "embedded", "where": str(self._home.directory)}
        return {**where, **self._facts, **shard, "unflushed": self._written}

    # the way into the thread

    async def _run(self, work: Callable[[Shard], R]) -> R:
        return await self._in_thread(lambda: work(self._usable()))

    async def _in_thread(self, work: Callable[[], R]) -> R:
        if self._thread is None:
            raise StoreFailed("the store is not open")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _set(self, ids: Collection[str], fields: dict[str, Any]) -> None:
        await self._run(lambda _: self._write(len(ids), lambda shard: shard.set(ids, fields)))

    async def _remove_while(self, choose: Callable[[Shard], list[str]]) -> int:
        """Batch by batch, searches in between, until nothing is chosen any more."""
        total = 0
        while removed := await self._run(lambda shard: self._remove(choose(shard))):
            total += removed
        return total

    # everything below runs in the thread

    def _usable(self) -> Shard:
        if self._shard is None:
            raise StoreFailed("the store is not open")
        if not self._is_whole():
            raise StoreFailed(f"{self._home.directory} was removed or has failed; it will be opened anew")
        return self._shard

    def _is_whole(self) -> bool:
        panicked = self._shard is not None and self._shard.panicked
        return not panicked and self._home.inode(self._notes.shard) == self._inode

    def _open(self) -> None:
        if self._shard is not None:
            return
        self._home.enter()
        try:
            self._shard = self._load()
        finally:
            if self._shard is None:
                self._home.leave()
        self._inode = self._home.inode(self._notes.shard)
        self._written, self._flushed_s = 0, self._clock_s()
        self._note_facts()

    def _load(self) -> Shard:
        try:
            return self._load_what_is_there()
        except StoreBroken:
            self._home.set_aside()
            self._facts["set_aside"] += 1
            return self._load_what_is_there()

    def _load_what_is_there(self) -> Shard:
        notes = self._home.read(self._dimension)
        self._home.clear(keep=notes.shard if notes else "")
        self._notes = notes or Notes(dimension=self._dimension)
        if notes is not None:
            return Shard.load(self._home.directory / notes.shard, self._dimension)
        shard = Shard.create(self._home.directory / self._notes.shard, self._dimension)
        self._home.write(self._notes)
        return shard

    def _close(self) -> None:
        shard, whole = self._shard, self._is_whole()
        if shard is None:
            return
        self._close_retired()
        self._give_up_compaction()
        self._shard = None
        try:
            if whole:
                self._home.write(self._notes)
                shard.flush()
        finally:
            shard.close()
            self._home.leave()

    def _reopen(self) -> None:
        self._close_retired()
        self._give_up_compaction()
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        self._home.leave()
        self._open()
        self._facts["reopened"] += 1

    def _write(self, writes: int, work: Callable[[Shard], None]) -> None:
        """Do it to the shard, and to the one that a compaction is filling."""
        work(self._usable())
        if self._compaction is not None:
            try:
                work(self._compaction.new)
            except StoreFailed:
                self._give_up_compaction(failed=True)
        self._written += writes
        if self._written >= 2 * FLUSH_WRITES:  # nobody tends us
            self._flush(0.0)

    def _remove(self, ids: Sequence[str]) -> int:
        removed: list[int] = []
        self._write(len(ids), lambda shard: removed.append(shard.drop(ids)))
        self._notes = replace(self._notes, dead=self._notes.dead + removed[0])
        return removed[0]

    def _flush(self, after_s: float) -> bool:
        """When there is something to write out, and it is time."""
        waited_s = self._clock_s() - self._flushed_s
        if not self._written or (waited_s < after_s and self._written < FLUSH_WRITES):
            return False
        self._written, self._flushed_s = 0, self._clock_s()
        self._usable().flush()
        self._home.write(self._notes)
        self._note_facts()
        return True

    def _compact(self) -> bool:
        """Begin, go on or end; False: nothing is due."""
        shard = self._usable()
        if self._compaction is None and not compaction.is_due(self._notes.dead, shard.count()):
            return False
        try:
            self._compaction = self._compaction or self._begin_compaction(shard)
            if self._compaction.step():
                self._end_compaction(self._compaction)
        except StoreFailed:
            self._give_up_compaction(failed=True)
            raise
        return True

    def _begin_compaction(self, shard: Shard) -> Compaction:
        self._home.clear(keep=self._notes.shard)
        number = int(self._notes.shard.removeprefix("shard-")) + 1
        return Compaction(shard, Shard.create(self._home.directory / f"shard-{number}", self._dimension))

    def _end_compaction(self, done: Compaction) -> None:
        done.new.flush()
        notes = replace(self._notes, shard=done.new.directory.name, dead=0)
        self._home.write(notes)  # from here on the new shard is the store
        self._notes, self._shard, self._compaction = notes, done.new, None
        self._inode, self._retired = self._home.inode(notes.shard), done.old
        self._facts["compactions"] += 1
        self._note_facts()

    def _close_retired(self) -> None:
        retired, self._retired = self._retired, None
        if retired is not None:
            retired.close()

    def _give_up_compaction(self, failed: bool = False) -> None:
        if failed:
            self._facts["compactions_failed"] += 1
            self._notes = replace(self._notes, dead=0)  # not again before as many have died once more
        given_up, self._compaction = self._compaction, None
        if given_up is not None:
            given_up.new.close()
            self._home.clear(keep=self._notes.shard)

    def _note_facts(self) -> None:
        self._facts["bytes"] = self._home.bytes()
        self._facts["entries"] = 0 if self._shard is None else self._shard.count()
