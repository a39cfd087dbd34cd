"""Stages 4, 5 · dispatcher · has this been answered before, or is it being answered now?

    put ─► not eligible ─────────────────────────────────────────────► forward
        └► exact cache (Redis, one call for all of a moment) ─► hit ─► settle
            └► semantic cache (vectors process, within a budget) ─► hit ─► settle
                └► miss: its promise is kept there, and ──────────────► forward with its flight: equal jobs follow it

Whatever fails here is a miss. Nothing here ends a job but a hit.
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
from metamusesd.dispatcher.caching import Rules, age_s, hit
from metamusesd.dispatcher.identities import Identities
from metamusesd.dispatcher.ledger import Ledger
from metamusesd.dispatcher.vectors_link import VectorsLink
from metamusesd.errors import QueueError
from metamusesd.job import Answer, CacheNote, InferenceRequest, Route, decode_answer
from metamusesd.queues.answers import Recall, Recalled
from metamusesd.queues.base import Claim, Queue, Settlement
from metamusesd.wire import Found, Look

PROMISE_MS = 600_000  # a promise that nobody withdrew is forgotten then

Forward = Callable[[Claim, Route, float, str], None]  # with the milliseconds of its routing, and the flight or none
Settle = Callable[[Claim, Settlement], None]


@dataclass(frozen=True, slots=True)
class _Case:
    """One job that is being looked up."""

    claim: Claim
    routing: Route
    question: Question
    may: Eligibility
    identities: list[str]
    started_ns: int
    route_ms: float

    @property
    def flight(self) -> str:
        return self.question.flight(self.identities) if self.may.share else ""


class Lookup:
    """Looks up for one dispatcher. `forward` gets every job that must be computed, and `wake` follows unless that was
    within `put`; `settle` gets every hit."""

    def __init__(
        self, queue: Queue, rules: Rules, identities: Identities, vectors: VectorsLink, forward: Forward,
        settle: Settle, wake: Callable[[], None], ledger: Ledger,
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

    def put(self, claim: Claim, request: InferenceRequest, routing: Route, route_ms: float) -> None:
        """Sooner or later `forward` or `settle` is called for it, perhaps at once."""
        if not self._rules.enabled:
            self._forward(claim, routing, route_ms, "")
            return
        may = eligibility(request, routing.domain, self._rules.exact_domains)
        identities = self._identities.of_tiers(routing.tiers)
        if not (may.read or may.share) or not identities:
            reason = may.reason or "no worker has said yet which model it has"
            self._ledger.looked_up("skipped", "ineligible")
            self._forward(claim, _noted(routing, CacheNote(kind="off", reason=reason)), route_ms, "")
            return
        case = _Case(claim, routing, question_of(request), may, identities, time.monotonic_ns(), route_ms)
        if not self._cases:
            asyncio.get_running_loop().call_soon(self._flush)
        self._cases.append(case)
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
        asks = [_recall_of(case) for case in cases]
        try:
            recalled = await self._queue.recall(asks)
        except QueueError as error:
            self._ledger.redis(error)
            recalled = [Recalled()] * len(cases)
        for case, found in zip(cases, recalled, strict=True):
            try:
                self._recalled(case, found)
            except Exception as error:  # a bug of ours, or a cache that somebody spoilt: the job goes on
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
        elif not (case.may.read and case.may.semantic and self._rules.semantic):
            reason = case.may.reason or "the semantic cache is off"
            self._ledger.looked_up("miss", "exact", case.started_ns)
            self._miss(case, CacheNote(kind="miss", reason=reason))
        elif not self._vectors.may_ask():
            self._ledger.looked_up("failed", "away")
            self._miss(case, CacheNote(kind="miss", reason="the semantic cache does not answer"))
        else:
            self._vectors.look(
                lambda handle, until_ns: self._look_of(case, handle, until_ns), lambda said: self._found(case, said)
            )

    def _look_of(self, case: _Case, handle: int, until_ns: int) -> Look:
        """What the vectors process is asked; a job that may be followed leaves its promise there."""
        question, promises, promise = case.question, "", b""
        if case.may.share and self._rules.coalesce:
            promises = question.promises(case.identities)
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
            self._miss(case, note, entry.flight)
        elif found.verdict in ("miss", "beyond"):
            self._ledger.looked_up("refused" if found.score else "miss", "semantic", case.started_ns)
            self._miss(case, note)
        else:
            self._ledger.looked_up("failed", found.verdict)
            self._miss(case, note)

    def _hit(self, case: _Case, answer: Answer, note: CacheNote) -> None:
        self._ledger.looked_up("hit", note.kind, case.started_ns)
        passed_ms = (time.monotonic_ns() - case.started_ns) / 1e6 + case.route_ms
        self._settle(case.claim, hit(case.claim, case.routing, answer, note, case.route_ms, passed_ms))
        self._done()

    def _miss(self, case: _Case, note: CacheNote, flight: str = "") -> None:
        own = case.flight if self._rules.coalesce else ""
        self._forward(case.claim, _noted(case.routing, note), case.route_ms, flight or own)
        self._wake()
        self._done()

    def _done(self) -> None:
        self._open -= 1
        if not self._open:
            self._answered.set()


def _recall_of(case: _Case) -> Recall:
    keys = tuple(case.question.key(identity) for identity in case.identities) if case.may.read else ()
    return Recall(case.claim.id, keys, case.question.asked if case.may.read else "")


def _noted(routing: Route, note: CacheNote) -> Route:
    return msgspec.structs.replace(routing, lookup=note)


def _decoded(raw: bytes) -> Answer | None:
    """None: somebody else wrote it, or another version."""
    try:
        return decode_answer(raw)
    except msgspec.MsgspecError:
        return None
