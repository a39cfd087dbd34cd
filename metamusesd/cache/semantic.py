"""Stage 4 · vectors process · the semantic cache itself: a question in, an answer that was given before out, or a miss.

    look ─► vector ─► the nearest answers, then promises ─► verifier ─► hit · flight · miss, and a promise
    keep ─► vector ─► store ─► the promise of the same question is withdrawn

No process and no sockets: `vectors/` serves it, `metamusesd cache evaluate` and the benchmarks call it. Nothing that
the store or the embedder cannot do is an error of a lookup: it is the verdict `failed`, counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from metamusesd.cache.admission import admits
from metamusesd.cache.base import Embedder, Entry, Labels, Neighbour, Store, decode_entry, encode_entry, entry_id
from metamusesd.cache.upkeep import MOST_PROMISES, QUIET_NS, Upkeep
from metamusesd.cache.vectorizer import NoVector, Vectorizer
from metamusesd.cache.verifier import verify
from metamusesd.errors import CacheError, EmbedderFailed, StoreFailed, StoreRefused
from metamusesd.wire import Complain, Forget, Found, Keep, Look, Weigh, Withdraw

if TYPE_CHECKING:
    from metamusesd.cache.base import Vector

T = TypeVar("T")
NEIGHBOURS = 8  # that a lookup weighs
WEIGHED = 32  # that are shown to people
MOST_OPEN, CHUNK = 1024, 256  # questions at a time; of one call
REST_NS = 1_000_000_000  # after a failure of the store, lookups do not ask it for so long
PROMISE_TTL_MS = 600_000  # of a promise that names no end
EQUAL_SCORE = 0.999  # a wrong hit with so much: no bar can keep these two apart
MOST_COMPLAINTS = 3
BAR_STEP = 0.01
TEND_S, MORE_S = 1.0, 0.05  # between two turns of the upkeep; while it has more to do
QUIET_TEND_S, QUIET_AFTER_NS = 5.0, 60_000_000_000  # while nobody has asked for so long: what was written is flushed
COUNTED = (
    "hits", "flights", "misses", "beyond", "failures", "late", "kept", "unkept", "promises", "withdrawn", "complaints",
    "dropped",
)  # fmt: skip
SAME_TEXT = "the same text"
VERDICTS = {"hit": "hits", "flight": "flights", "miss": "misses", "beyond": "beyond", "failed": "failures"}


@dataclass(frozen=True, slots=True)
class Terms:
    """When a neighbour hits, and how long how many answers are kept. As in [cache] of the configuration."""

    similarity_threshold: float = 0.95
    candidate_threshold: float = 0.85
    ttl_ms: int = 24 * 3_600_000
    max_entries: int = 100_000


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the verifier thinks of one neighbour."""

    admitted: bool
    verdict: str
    reason: str


def wall_ms() -> int:
    """Since the epoch."""
    return time.time_ns() // 1_000_000


class Semantic:
    """Call everything on one event loop. `promises` may be the same store as `answers` (a server that hosts share)."""

    def __init__(
        self,
        embedder: Embedder,
        answers: Store,
        promises: Store,
        terms: Terms | None = None,
        *,
        now_ms: Callable[[], int] = wall_ms,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.counted = dict.fromkeys(COUNTED, 0)
        self.asked = self.done = self.entries = 0
        self.store_trouble = self.embedder_trouble = ""  # how it failed; empty: the last time it did not
        self._embedder, self._answers, self._promises = embedder, answers, promises
        self._terms, self._now_ms, self._now_ns = terms or Terms(), now_ms, now_ns
        self.vectorizer = Vectorizer(embedder, now_ns)
        self._stores = [answers] if promises is answers else [answers, promises]
        mosts = (self._terms.max_entries, MOST_PROMISES)
        self.upkeep = Upkeep(list(zip(self._stores, mosts, strict=False)))
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._open: dict[int, int] = {}  # number of a question → since when, the oldest first
        self._rest_until_ns = self._asked_ns = 0

    @property
    def trouble(self) -> str:
        """Why lookups fail now; empty: they do not."""
        return self.store_trouble or self.embedder_trouble

    @property
    def oldest_ns(self) -> int:
        """Since when the oldest question is at work (monotonic); 0: none is."""
        return next(iter(self._open.values()), 0)

    @property
    def oldest_text_ns(self) -> int:
        """The same of those that wait for the embedder."""
        return self.vectorizer.oldest_ns

    @property
    def text_ns(self) -> int:
        """What a text takes to be embedded."""
        return int(self.vectorizer.text_ns)

    # lookups

    async def look(self, looks: Sequence[Look]) -> list[Found | None]:
        """All of them, CHUNK at a time; None: it came too late for whoever asked. Never raises."""
        return [found for chunk in _chunks(looks) for found in await asyncio.gather(*map(self.look_up, chunk))]

    async def look_up(self, look: Look) -> Found | None:
        """One lookup, for a caller that has many: they share the embedder's batches. Never raises."""
        found: Found | None
        with self._counting():
            if problem := self._refusal():
                found = Found(look.handle, "failed", reason=problem)
            else:
                try:
                    found = await self._look(look)
                except CacheError as error:
                    found = Found(look.handle, "failed", reason=self._failed(error))
                    if isinstance(error, StoreFailed):
                        self._rest_until_ns = self._now_ns() + REST_NS
        self.counted["late" if found is None else VERDICTS[found.verdict]] += 1
        return found

    def _refusal(self) -> str:
        """Why nothing is looked up now."""
        if len(self._open) > MOST_OPEN:
            return f"more than {MOST_OPEN} questions wait"
        return self.store_trouble if self._now_ns() < self._rest_until_ns else ""

    async def _look(self, look: Look) -> Found | None:
        if not look.text:
            return Found(look.handle, "beyond", reason="there is no text")
        vector = await self.vectorizer.vector(look.text, look.until_ns)
        self.embedder_trouble = ""
        if isinstance(vector, NoVector):
            beyond = Found(look.handle, "beyond", reason="the embedder does not see all of the text")
            return beyond if vector is NoVector.BEYOND else None
        async with self._turn(look.promises, look.text):
            if look.until_ns and self._now_ns() >= look.until_ns:
                return None
            return await self._search(look, vector)

    async def _search(self, look: Look, vector: Vector) -> Found:
        """Within the turn of its promise: between the search and the promise nobody else looks for this text."""
        now_ms = self._now_ms()
        near = await self._near(look, vector, now_ms)
        self.store_trouble = ""
        nearest, refused = 0.0, ""
        for neighbour in near:
            opinion = self._weigh(look.text, neighbour)
            if opinion.admitted:
                return self._found(look, neighbour, opinion.reason)
            if neighbour.score > nearest:
                nearest, refused = neighbour.score, opinion.reason
        if look.promise and (earlier := await self._promise(look, vector, now_ms)) is not None:
            return self._found(look, Neighbour(earlier, 1.0), SAME_TEXT)
        return Found(look.handle, "miss", nearest, refused)

    async def _near(self, look: Look, vector: Vector, now_ms: int) -> list[Neighbour]:
        """Answers first, the best of them first: one that is there is worth more than one that is to come."""
        floor = self._terms.candidate_threshold
        searches = [self._answers.search(vector, look.partitions, floor, NEIGHBOURS, now_ms)]
        if look.promises:  # apart: promises must not crowd out an answer
            searches.append(self._promises.search(vector, [look.promises], floor, NEIGHBOURS, now_ms))
        found = [near for part in await asyncio.gather(*searches) for near in part]
        return sorted(found, key=lambda near: (not near.entry.answer, -near.score))

    def _weigh(self, text: str, neighbour: Neighbour) -> Opinion:
        entry, terms = neighbour.entry, self._terms
        if _is_equal(entry, text):
            return Opinion(True, "same", SAME_TEXT)
        judgement = verify(text, entry.query)
        admitted = admits(
            judgement, neighbour.score, similarity_threshold=terms.similarity_threshold,
            candidate_threshold=terms.candidate_threshold, bar=entry.bar,
        )  # fmt: skip
        return Opinion(admitted, judgement.verdict, judgement.reason)

    def _found(self, look: Look, neighbour: Neighbour, reason: str) -> Found:
        entry = neighbour.entry
        if entry.answer:
            self.upkeep.used(entry.id)
        score = 1.0 if _is_equal(entry, look.text) else min(1.0, neighbour.score)
        return Found(look.handle, "hit" if entry.answer else "flight", score, reason, encode_entry(entry))

    async def _promise(self, look: Look, vector: Vector, now_ms: int) -> Entry | None:
        """Put it. The promise of the same text that is there already, if there is one: then nothing is put."""
        entry = self._dated(_decoded(look.promise), PROMISE_TTL_MS, now_ms)
        earlier = await self._promises.get(entry.id)
        if earlier is not None and earlier.expires_ms > now_ms:
            return earlier
        await self._promises.put([(entry, vector)])
        self.counted["promises"] += 1
        return None

    # answers

    async def keep(self, keeps: Sequence[Keep]) -> None:
        """Store these answers, and withdraw the promises of the same questions. Never raises: what could not be kept is
        counted."""
        for chunk in _chunks(keeps):
            await asyncio.gather(*map(self._keep, chunk))

    async def _keep(self, keep: Keep) -> None:
        with self._counting():
            kept = False
            with self._forgiving():
                if len(self._open) <= MOST_OPEN:
                    entry = self._dated(_decoded(keep.entry), self._terms.ttl_ms, self._now_ms())
                    kept = await self._store(entry, keep.promises)
            self.counted["kept" if kept else "unkept"] += 1

    async def _store(self, entry: Entry, promises: str) -> bool:
        """The promise goes after the answer came, so that nobody finds neither; and it goes if none came as well."""
        async with self._turn(promises, entry.query):
            try:
                vector = await self.vectorizer.vector(entry.query)
                if isinstance(vector, NoVector):
                    return False
                await self._answers.put([(entry, vector)])
                return True
            finally:
                if promises:
                    await self._promises.drop([entry_id(promises, entry.query)])

    async def withdraw(self, withdraw: Withdraw) -> None:
        """These promises are not going to be kept. Never raises."""
        with self._counting(), self._forgiving():
            await self._promises.drop(withdraw.ids)
            self.counted["withdrawn"] += len(withdraw.ids)

    async def complain(self, complain: Complain) -> None:
        """A hit on this entry was wrong: the next one must be nearer. If nothing can be nearer, or after
        MOST_COMPLAINTS, it goes. Never raises."""
        with self._counting(), self._forgiving():
            self.counted["complaints"] += 1
            entry = await self._answers.get(complain.id)
            if entry is None:
                return
            if complain.score >= EQUAL_SCORE or entry.complaints + 1 >= MOST_COMPLAINTS:
                await self._answers.drop([entry.id])
                self.counted["dropped"] += 1
                return
            bar = max(entry.bar, complain.score + BAR_STEP)
            await self._answers.mark(entry.id, bar=bar, complaints=entry.complaints + 1)

    # operators

    async def forget(self, forget: Forget) -> int:
        """Purge by label, promises included; how many went. Raises StoreFailed."""
        with self._counting():
            labels = Labels(*(label or None for label in (forget.tenant, forget.muse, forget.model, forget.tag)))
            return sum([await store.purge(labels) for store in self._stores])

    async def weigh(self, weigh: Weigh) -> dict[str, Any]:
        """Explain a lookup: as drawn in wire.Weigh. Raises CacheError."""
        with self._counting():
            vector = await self.vectorizer.vector(weigh.text) if weigh.text else NoVector.BEYOND
            if isinstance(vector, NoVector):
                return {"fits": False, "neighbours": []}
            now_ms, floor = self._now_ms(), self._terms.candidate_threshold
            near = await self._answers.search(vector, weigh.partitions, floor, WEIGHED, now_ms)
            return {"fits": True, "neighbours": [self._shown(weigh.text, each, now_ms) for each in near]}

    def _shown(self, text: str, neighbour: Neighbour, now_ms: int) -> dict[str, Any]:
        entry, opinion = neighbour.entry, self._weigh(text, neighbour)
        return {
            "id": entry.id, "query": entry.query, "score": round(neighbour.score, 4), "verdict": opinion.verdict,
            "reason": opinion.reason, "admitted": opinion.admitted, "age_s": max(0, now_ms - entry.created_ms) / 1000,
            "model": entry.model, "bar": entry.bar,
        }  # fmt: skip

    async def count(self) -> dict[str, Any]:
        """Facts. Raises StoreFailed."""
        with self._counting():
            return {
                "store": {**self._answers.statistics(), "entries": await self._answers.count()},
                "promises": await self._stores[-1].count() if len(self._stores) > 1 else 0,
                "embedder": {
                    "identity": self._embedder.identity, "window": self._embedder.window,
                    "text_ms": round(self.text_ns / 1e6, 2), "texts": self.vectorizer.texts,
                    "known_texts": self.vectorizer.known_texts, "batches": self.vectorizer.batches,
                },
                "counted": self.counted | {"swept": self.upkeep.swept, "tended": self.upkeep.tended},
                "trouble": self.trouble,
            }  # fmt: skip

    # maintenance

    async def open(self) -> None:
        """Open the stores. Legal twice. Raises StoreRefused for ever, StoreFailed for now: lookups fail meanwhile."""
        try:
            for store in self._stores:
                await store.open()
        except StoreFailed as error:
            self._failed(error)
            raise
        self.store_trouble, self._rest_until_ns = "", 0

    async def tend(self) -> None:
        """Look after the stores until cancelled."""
        while True:
            more = await self.tend_once()
            quiet = self._now_ns() - self._asked_ns > QUIET_AFTER_NS and not self.store_trouble
            await asyncio.sleep(MORE_S if more else QUIET_TEND_S if quiet else TEND_S)

    async def tend_once(self) -> bool:
        """One turn; True: there is more to do. A store in trouble is not spared: it may heal. Never raises."""
        now_ns, more = self._now_ns(), False
        quiet_ns = 0 if self._open else now_ns - self._asked_ns
        with self._forgiving():
            more = await self.upkeep.turn(now_ns, self._now_ms(), QUIET_NS if self.store_trouble else quiet_ns)
            self.entries = await self._answers.count()
            self.store_trouble = ""
        return more

    async def close(self) -> None:
        """Nobody is served any more; what was noted is written out. Never raises; legal twice."""
        self.vectorizer.close()
        with self._forgiving():
            await self.upkeep.close(self._now_ms())

    # the rest

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        """A question is at work."""
        self.asked += 1
        number = self.asked
        self._open[number] = self._asked_ns = self._now_ns()
        try:
            yield
        finally:
            del self._open[number]
            self.done += 1

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        """A failure is noted, and goes no further."""
        try:
            yield
        except CacheError as error:
            self._failed(error)

    def _turn(self, promises: str, text: str) -> contextlib.AbstractAsyncContextManager[None]:
        """One promise at a time: of two who ask the same at once, one promises, the other waits."""
        key = entry_id(promises, text)
        return self._turns.setdefault(key, asyncio.Lock()) if promises else contextlib.nullcontext()

    def _failed(self, error: CacheError) -> str:
        """Remember why."""
        if isinstance(error, StoreFailed | StoreRefused):
            self.store_trouble = error.message
        elif isinstance(error, EmbedderFailed):
            self.embedder_trouble = error.message
        return error.message

    def _dated(self, entry: Entry, ttl_ms: int, now_ms: int) -> Entry:
        """With the times that it does not have yet."""
        created_ms = entry.created_ms or now_ms
        return msgspec.structs.replace(
            entry, created_ms=created_ms, expires_ms=entry.expires_ms or now_ms + ttl_ms,
            used_ms=entry.used_ms or created_ms,
        )  # fmt: skip


def _is_equal(entry: Entry, text: str) -> bool:
    """The very question, in its own partition."""
    return entry.id == entry_id(entry.partition, text)


def _chunks(many: Sequence[T]) -> list[Sequence[T]]:
    return [many[start : start + CHUNK] for start in range(0, len(many), CHUNK)]


def _decoded(raw: bytes) -> Entry:
    try:
        return decode_entry(raw)
    except msgspec.MsgspecError as error:
        raise CacheError(f"an entry that cannot be read: {error}") from error
