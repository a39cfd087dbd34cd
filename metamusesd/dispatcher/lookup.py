"""Stages 4, 5 · dispatcher · has this been answered before, or is it being answered now?

    put ─► not eligible ─────────────────────────────────────────────► forward
        └► exact cache (Redis, one call for all of a moment) ─► hit ─► settle
            └► semantic cache (vectors process, within a budget) ─► hit ─► settle
                └► miss: its promise is kept there, and ──────────────► forward with its flight: equal jobs follow it

Whatever fails here is a miss, our own mistakes included. Nothing here ends a job but a hit, and every job that was put
in leaves once: `_close` is the only way out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from metamusesd.cache.base import Entry, decode_entry, encode_entry, entry_id
from metamusesd.cache.eligible import Eligibility, eligibility
from metamusesd.cache.partition import Question, question_of
from metamusesd.dispatcher.caching import MOST_CHARS, Rules, age_s, hit
from metamusesd.dispatcher.identities import Identities
from metamusesd.dispatcher.ledger import Ledger
from metamusesd.dispatcher.vectors_link import VectorsLink
from metamusesd.errors import QueueError
from metamusesd.job import Answer, InferenceRequest, decode_answer
from metamusesd.queues.answers import Recall, Recalled
from metamusesd.queues.base import Claim, Queue, Settlement
from metamusesd.route import CacheNote, Route
from metamusesd.wire import Found, Look

PROMISE_MS = 600_000  # a promise that nobody withdrew is forgotten then
MOST_IDENTITIES = 32


@dataclass(frozen=True, slots=True)
class Routing:
    """An analysed job: what `forward` gets back, with a note in `route`."""

    claim: Claim
    request: InferenceRequest
    route: Route
    route_ms: float


@dataclass(slots=True)
class _Case:
    """One job that is being looked up."""

    job: Routing
    question: Question
    may: Eligibility
    identities: list[str]
    flight: str  # empty: it neither follows nor leads
    started_ns: int
    closed: bool = False


class Lookup:
    """Looks up for one dispatcher. `forward` (with a flight, or none) gets every job that must be computed, and `wake`
    follows unless that was within `put`; `settle` gets every hit."""

    def __init__(
        self, queue: Queue, rules: Rules, identities: Identities, vectors: VectorsLink,
        forward: Callable[[Routing, str], None], settle: Callable[[Claim, Settlement], None], wake: Callable[[], None],
        ledger: Ledger,
    ) -> None:  # fmt: skip
        self._queue, self._rules, self._identities, self._vectors = queue, rules, identities, vectors
        self._forward, self._settle, self._wake, self._ledger = forward, settle, wake, ledger
        self._cases: list[_Case] = []
        self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._answered = asyncio.Event()
        self._answered.set()

    def __repr__(self) -> str:
        return f"<Lookup open={self._open} {self._vectors}>"

    def put(self, job: Routing) -> None:
        """Sooner or later `forward` or `settle` is called for it, perhaps at once."""
        if not self._rules.enabled:
            self._forward(job, "")
            return
        may = eligibility(job.request, job.route.domain, self._rules.exact_domains, job.route.confidence)
        identities = self._identities.of_tiers(job.route.tiers)[:MOST_IDENTITIES]
        if not (may.read or may.share) or not identities:
            reason = may.reason or "no worker has said yet which model it has"
            self._ledger.looked_up("skipped", "ineligible")
            self._forward(_noted(job, CacheNote(kind="off", reason=reason)), "")
            return
        question, flight = question_of(job.request), ""
        if may.share and self._rules.coalesce:
            flight = question.flight(self._identities.all_of(job.route.tiers))
        if not self._cases:
            asyncio.get_running_loop().call_soon(self._flush)
        self._cases.append(_Case(job, question, may, identities, flight, time.monotonic_ns()))
        self._open += 1
        self._answered.clear()

    async def answered(self) -> None:
        """Nobody is being looked up any more."""
        await self._answered.wait()

    def _flush(self) -> None:
        cases, self._cases = self._cases, []
        task = asyncio.get_running_loop().create_task(self._recall(cases))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _recall(self, cases: list[_Case]) -> None:
        """The exact cache."""
        recalled = [Recalled()] * len(cases)
        try:
            recalled = await self._queue.recall([_recall_of(case) for case in cases])
        except QueueError as error:
            self._ledger.redis(error)
        except Exception as error:
            self._ledger.lookup_failed(error)
        for case, found in zip(cases, recalled, strict=True):
            self._guarded(case, lambda case=case, found=found: self._recalled(case, found))  # type: ignore[misc]

    def _guarded(self, case: _Case, step: Callable[[], None]) -> None:
        """A mistake of ours, or a cache that somebody spoilt: the job goes on."""
        try:
            step()
        except Exception as error:
            self._ledger.lookup_failed(error)
            self._miss(case, CacheNote(kind="miss", reason=f"{type(error).__name__}: {error}"))

    def _recalled(self, case: _Case, found: Recalled) -> None:
        answer = _decoded(found.value) if found.key else None
        if answer is not None:
            age = age_s(answer.created_ms)
            self._hit(case, answer, CacheNote(kind="exact", score=1.0, age_s=age, entry=found.key))
        elif found.repeated:
            self._ledger.looked_up("skipped", "repeated")
            self._miss(
                case, CacheNote(kind="off", reason="the same user asked it a moment ago: a new answer is wanted")
            )
        elif reason := self._exact_only(case):
            self._ledger.looked_up("miss", "exact", case.started_ns)
            self._miss(case, CacheNote(kind="miss", reason=reason))
        elif not self._vectors.may_ask():
            self._ledger.looked_up("failed", "away")
            self._miss(case, CacheNote(kind="miss", reason="the semantic cache does not answer"))
        else:
            self._vectors.look(
                lambda handle, until_ns: self._look_of(case, handle, until_ns),
                lambda said: self._guarded(case, lambda: self._found(case, said)),
            )

    def _exact_only(self, case: _Case) -> str:
        """Why the semantic cache is not asked; empty: it is."""
        if not (case.may.read and case.may.semantic):
            return case.may.reason or "the caller wants no answer from a cache"
        if len(case.question.text) > MOST_CHARS:
            return "longer than the embedder's window: only an equal question hits"
        return "" if self._rules.semantic else "the semantic cache is off"

    def _look_of(self, case: _Case, handle: int, until_ns: int) -> Look:
        """What the vectors process is asked; a job that may be followed leaves its promise there."""
        question, promises, promise = case.question, "", b""
        if case.flight:
            promises = question.promises(self._identities.all_of(case.job.route.tiers))
            now_ms = time.time_ns() // 1_000_000
            entry = Entry(
                id=entry_id(promises, question.text), partition=promises, query=question.text, flight=case.flight,
                tenant=question.tenant, muse=question.muse, tags=question.tags, created_ms=now_ms,
                expires_ms=now_ms + PROMISE_MS, used_ms=now_ms,
            )  # fmt: skip
            promise = encode_entry(entry)
        return Look(handle, question.text, question.partitions(case.identities), promises, promise, until_ns)

    def _found(self, case: _Case, found: Found) -> None:
        """The semantic cache has spoken, or the budget is spent."""
        entry = decode_entry(found.entry) if found.entry else None
        answer = _decoded(entry.answer) if entry is not None and found.verdict == "hit" else None
        note = CacheNote(kind="miss", score=round(found.score, 4), reason=found.reason)
        if entry is not None and answer is not None:
            age = age_s(answer.created_ms)
            note = msgspec.structs.replace(note, kind="semantic", age_s=age, entry=entry.id)
            self._hit(case, answer, note)
        elif entry is not None and found.verdict == "flight":
            self._ledger.looked_up("hit", "flight", case.started_ns)
            kind = "miss" if entry.flight == case.flight else "flight"  # the very text: nothing to explain
            self._miss(case, msgspec.structs.replace(note, kind=kind), entry.flight)
        elif found.verdict in ("miss", "beyond"):
            self._ledger.looked_up("refused" if found.score else "miss", "semantic", case.started_ns)
            self._miss(case, note)
        else:
            self._ledger.looked_up("failed", found.verdict)
            self._miss(case, note)

    def _hit(self, case: _Case, answer: Answer, note: CacheNote) -> None:
        job = case.job
        passed_ms = (time.monotonic_ns() - case.started_ns) / 1e6 + job.route_ms
        end = hit(job.claim, job.route, answer, note, job.route_ms, passed_ms)
        self._ledger.looked_up("hit", note.kind, case.started_ns)
        if self._close(case):
            self._settle(job.claim, end)

    def _miss(self, case: _Case, note: CacheNote, flight: str = "") -> None:
        if self._close(case):
            self._forward(_noted(case.job, note), flight or case.flight)
            self._wake()

    def _close(self, case: _Case) -> bool:
        """True for the first who asks: the job leaves once."""
        if case.closed:
            return False
        case.closed = True
        self._open -= 1
        if not self._open:
            self._answered.set()
        return True


def _recall_of(case: _Case) -> Recall:
    id = case.job.claim.id
    if not case.may.read:
        return Recall(id, ())
    return Recall(id, tuple(map(case.question.key, case.identities)), case.question.asked)


def _noted(job: Routing, note: CacheNote) -> Routing:
    return Routing(job.claim, job.request, msgspec.structs.replace(job.route, lookup=note), job.route_ms)


def _decoded(raw: bytes) -> Answer | None:
    """None: somebody else wrote it, or another version."""
    try:
        return decode_answer(raw)
    except msgspec.MsgspecError:
        return None
