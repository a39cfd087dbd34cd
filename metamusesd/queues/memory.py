"""Stages 1, 2, 9, 10 · tests · the job queue without Redis: the same answers as lua/, in one process, without I/O.

Each method of `MemoryQueue` mirrors the script of its name, and the contract suite holds the two together. Time comes
from `now_ms`, so that a unit test can turn the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from metamusesd.errors import IdConflict, InvalidRequest, QueueFull
from metamusesd.job import TERMINAL
from metamusesd.queues.base import (
    INGRESS,
    Append,
    Claim,
    Fault,
    Host,
    Limits,
    Reaped,
    Receipt,
    Requeue,
    Routed,
    Settlement,
    Submission,
    Suspect,
    Verdict,
    Want,
    cancels,
    receipt,
)
from metamusesd.queues.memory_answers import MemoryAnswers, Shelf
from metamusesd.queues.memory_dead import drop, revive
from metamusesd.queues.memory_flights import ended, join
from metamusesd.queues.memory_store import Job, Store, check
from metamusesd.queues.memory_sweeps import Sweep
from metamusesd.queues.memory_turns import TURNS, take_turns
from metamusesd.queues.memory_views import MemoryViews, as_announced, push

DEFAULTS = Limits()


class MemoryQueue(MemoryViews, MemoryAnswers):
    """Implements base.Queue for one event loop. `now_ms` is the server's clock."""

    def __init__(
        self, limits: Limits = DEFAULTS, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> None:
        self._store, self._shelf = Store(limits, now_ms), Shelf()
        self._store.landed = ended
        self._claimed: dict[str, tuple[str, list[str]]] = {}

    def __repr__(self) -> str:
        return f"<MemoryQueue {len(self._store.jobs)} jobs>"

    async def open(self) -> None:
        """Nothing to do."""

    async def check(self) -> None:
        """Nothing to do."""

    async def configure(self) -> None:
        """See base.Queue and lua/configure.lua."""
        self._store.published = self._store.limits

    async def close(self) -> None:
        """Nothing to do."""

    # producers

    async def submit(self, jobs: Sequence[Submission]) -> list[Receipt | QueueFull | IdConflict]:
        """See base.Queue and lua/submit.lua."""
        for job in jobs:
            check(job)
        answers = [receipt(*self._store.accept(job)) for job in jobs]
        if any(isinstance(answer, Receipt) and not answer.duplicate for answer in answers):
            self._store.arm(INGRESS)
        return answers

    async def cancel(self, id: str) -> str:
        """See base.Queue and lua/cancel.lua."""
        job = self._store.get(id)
        if job is None:
            return "gone"
        if job.state not in TERMINAL:
            running = job.state == "running"
            self._store.fail(job, "cancelled")
            if running:
                self._store.arm(cancels(job.owner))
            self._store.close()
        return job.state

    async def revive(self, id: str) -> str:
        """See base.Queue and lua/revive.lua."""
        return revive(self._store, id)

    async def drop(self, id: str) -> str:
        """See base.Queue and lua/drop.lua."""
        return drop(self._store, id)

    # the dispatcher

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        """See base.Queue."""
        if not await self._store.until(lambda: bool(self._store.markers.intersection(queues)), timeout_s):
            return False
        self._store.markers.discard(next(queue for queue in queues if queue in self._store.markers))
        return True

    async def claim(
        self, owner: str, nonce: str, wants: Sequence[Want], routed: Sequence[Routed] = (), *, lease_ms: int
    ) -> list[Claim]:
        """See base.Queue and lua/claim.lua."""
        last_nonce, last_ids = self._claimed.get(owner, ("", []))
        if last_nonce == nonce:
            held = list(self._still_held(nonce, last_ids))
            for job in held:
                job.lease_end_ms = self._store.now_ms() + lease_ms
            return [self._report(job) for job in held]
        for move in routed:
            self._leave(move)
        for move in routed:
            self._route(move)
        taken: list[Job] = []
        for want in wants:
            self._take_from(want, owner, nonce, lease_ms, taken)
        self._store.close()
        if taken:
            self._claimed[owner] = (nonce, [job.submission.id for job in taken])
        return [self._report(job) for job in taken]

    async def renew(self, held: Sequence[tuple[str, str]], *, lease_ms: int) -> list[Verdict]:
        """See base.Queue and lua/renew.lua."""
        return [self._renew(id, token, lease_ms) for id, token in held]

    async def append(self, pieces: Sequence[Append]) -> list[Verdict]:
        """See base.Queue and lua/append.lua."""
        return [self._append(piece) for piece in pieces]

    async def settle(self, ends: Sequence[Settlement]) -> list[Verdict]:
        """See base.Queue and lua/settle.lua."""
        for end in ends:
            if end.state not in TERMINAL:
                raise InvalidRequest("state", "not terminal", "give done, failed, cancelled, …")
        return [self._settle(end) for end in ends]

    async def requeue(self, jobs: Sequence[Requeue]) -> list[Verdict]:
        """See base.Queue and lua/requeue.lua."""
        verdicts = [self._requeue(job) for job in jobs]
        self._store.close()
        return verdicts

    async def reap(
        self, owner: str, suspects: Sequence[Suspect] = (), *, tiers: Sequence[str] = (), takeover: bool = False
    ) -> Reaped:
        """See base.Queue and lua/reap.lua."""
        reaped = Sweep(self._store, owner, tiers).run(suspects, takeover)
        self._store.close()
        return reaped

    async def announce(self, host: Host, ttl_s: float) -> None:
        """See base.Queue."""
        instance, hosts = host.owner.rpartition(":")[0], self._store.hosts
        for other in [other for other in hosts if instance and other.rpartition(":")[0] == instance]:
            del hosts[other]
        hosts[host.owner] = as_announced(host), self._store.now_ms() + round(ttl_s * 1000)

    async def push(self, tier: str, most: int = 100) -> int:
        """See base.Queue and lua/push.lua."""
        return push(self._store, tier, most)

    # one entry of a call

    def _still_held(self, nonce: str, ids: list[str]) -> Iterable[Job]:
        for i, id in enumerate(ids, 1):
            job, _ = self._store.held(id, f"{nonce}:{i}")
            if job:
                yield job

    def _leave(self, move: Routed) -> None:
        job, _ = self._store.held(move.id, move.token)
        if job and move.tiers and job.flight != move.flight:
            ended(self._store, job, "left")
            job.flight = move.flight

    def _route(self, move: Routed) -> None:
        job, _ = self._store.held(move.id, move.token)
        if job and move.tiers:
            job.tiers, job.route = move.tiers, move.route
            self._store.put_back(job)
            join(self._store, job, move.flight)

    def _take_from(self, want: Want, owner: str, nonce: str, lease_ms: int, taken: list[Job]) -> None:
        count, left = want.count, want.count > 0
        while count > 0 and left:
            jobs, left = self._choose(want, count)
            for job in jobs:
                if self._store.overdue(job):
                    self._store.fail(job, "expired")
                    continue
                self._take(job, want.queue, owner, f"{nonce}:{len(taken) + 1}", lease_ms)
                taken.append(job)
                count -= 1
        if left or want.count == 0:
            self._store.touched.add(want.queue)
        elif want.floor == 0 and not self._store.waiting(want.queue):
            self._store.markers.discard(want.queue)
            self._store.touched.discard(want.queue)

    def _choose(self, want: Want, count: int) -> tuple[list[Job], bool]:
        """The next jobs to take, and whether it leaves some; overdue ones are to be ended instead. Marks the aged."""
        store, queue = self._store, want.queue
        waiting = [job for job in store.waiting(queue) if job.priority >= want.floor]
        left = len(waiting) > count
        if not left or want.floor or not any(each.max_wait_ms for each in store.limits.classes):
            return waiting[:count], left
        turn = store.turns.get(queue, 0)
        jobs, aged = take_turns(waiting, count, turn, store.limits, store.now_ms())
        store.turns[queue] = (turn + len(jobs)) % TURNS
        for job in jobs:
            job.aged = job.submission.id in aged
        return jobs, left

    def _take(self, job: Job, queue: str, owner: str, token: str, lease_ms: int) -> None:
        job.state, job.token, job.owner, job.queue = "running", token, owner, queue
        job.claimed_ms = self._store.now_ms()
        job.lease_end_ms = job.claimed_ms + lease_ms
        if queue != INGRESS and not job.started:
            job.started = True
            self._store.emit(job, "started")

    def _report(self, job: Job) -> Claim:
        sent = job.submission
        return Claim(
            sent.id, job.token, job.queue, job.priority, job.attempt, job.crashes, job.body,
            b"" if job.queue == INGRESS else job.route, sent.tenant, sent.stream, job.submitted_ms, job.deadline_ms,
            job.claimed_ms, job.retries, job.aged,
        )  # fmt: skip

    def _renew(self, id: str, token: str, lease_ms: int) -> Verdict:
        job, verdict = self._store.held(id, token)
        if job:
            job.lease_end_ms = self._store.now_ms() + lease_ms
            return Verdict.EXPIRED if self._store.overdue(job) else verdict
        return verdict

    def _append(self, piece: Append) -> Verdict:
        job, verdict = self._store.held(piece.id, piece.token)
        if job is None:
            return verdict
        if piece.text and piece.offset > job.written:
            return Verdict.LOST
        fresh = piece.text[job.written - piece.offset :]
        if fresh:
            offset, job.written = job.written, job.written + len(fresh)
            self._store.emit(job, "token", offset=offset, text=fresh, tokens=piece.tokens)
        raised, job.raised = job.raised, False
        if self._store.overdue(job):
            return Verdict.EXPIRED  # it may still be settled as done
        return Verdict.RAISED if raised else Verdict.OK

    def _settle(self, end: Settlement) -> Verdict:
        job, verdict = self._store.held(end.id, end.token)
        if job:
            if end.answer and end.state == "done":
                self.remember(end.answer)
            if end.replay:
                self._store.emit(job, "started")
                self._store.emit(job, "token", text=end.replay, tokens=end.replay_tokens)
            self._store.finish(job, end.state, end.result)
            self._store.close()
            return Verdict.OK
        ended = self._store.get(end.id)
        return Verdict.OK if ended and ended.token == end.token and ended.state == end.state else verdict

    def _requeue(self, back: Requeue) -> Verdict:
        job, verdict = self._store.held(back.id, back.token)
        if job is None:
            ended = self._store.get(back.id)
            before = ended and (ended.back == back.token or (ended.state == "dead" and ended.token == back.token))
            return Verdict.OK if before and ended and ended.state not in ("cancelled", "expired") else verdict
        job.keep(back.evidence)
        job.crashes += back.fault in (Fault.CRASH, Fault.CRASH_ALONE)
        job.retries += back.fault == Fault.ERROR
        if back.fault == Fault.CRASH_ALONE and job.crashes >= self._store.limits.max_crashes:
            job.reason = back.reason
            self._store.fail(job, "dead")
            return Verdict.OK
        burnt = back.fault != Fault.NONE
        job.attempt += burnt
        if back.tiers and not back.reroute:
            job.tiers, job.route = back.tiers, back.route
        job.tiers = () if back.reroute else job.tiers
        self._store.give_back(job, back.reason, back.delay_ms, burnt)
        return Verdict.OK
