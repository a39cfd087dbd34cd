"""Stages 1, 9, 10 · tests · what can be seen of a memory queue: the reads of redis_views, and where a job stands."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

from metamusesd.job import TERMINAL
from metamusesd.queues.base import CLASS_STRIDE, INGRESS, Depth, Host, JobEvent, JobView, Position, Service
from metamusesd.queues.census import LiveJob
from metamusesd.queues.memory_store import Job, Store
from metamusesd.queues.memory_turns import TURNS

PAUSE_MS, PATIENCE_MS = 900, 500  # as in lua/push.lua


class MemoryViews:
    """The reading half of MemoryQueue."""

    _store: Store

    async def view(self, id: str) -> JobView | None:
        """See base.Queue."""
        job = self._store.get(id)
        return _view(job) if job else None

    async def result(self, id: str) -> bytes | None:
        """See base.Queue."""
        job = self._store.get(id)
        return job.result if job else None

    async def events(self, id: str, after: str = "0", block_ms: int = 0) -> list[JobEvent]:
        """See base.Queue."""
        return await self._store.read(f"events:{id}", after, block_ms)

    async def mail(self, name: str, after: str = "0", block_ms: int = 0) -> list[JobEvent]:
        """See base.Queue."""
        return await self._store.read(f"mail:{name}", after, block_ms)

    async def position(self, id: str) -> Position | None:
        """See base.Queue and lua/position.lua."""
        job = self._store.get(id)
        return place(self._store, job) if job else None

    async def hosts(self) -> list[Host]:
        """See base.Queue."""
        return living(self._store)

    async def dead(self, count: int = 100) -> list[JobView]:
        """See base.Queue. Without their bodies: those are in `view`."""
        found = [job for job in map(self._store.get, list(self._store.jobs)) if job and job.state == "dead"]
        found.sort(key=lambda job: (job.ended_ms, job.submission.id), reverse=True)
        return [replace(_view(job), body=b"") for job in found[: max(count, 1)]]

    async def living(self) -> int:
        """See census.Census."""
        return len(_live(self._store))

    async def live(self, skip: int, count: int) -> tuple[int, list[LiveJob]]:
        """See census.Census."""
        return self._store.now_ms(), [_live_job(job) for job in _live(self._store)[skip : skip + max(count, 1)]]

    async def depths(self, queues: Sequence[str]) -> list[Depth]:
        """See base.Queue."""
        return [self._store.depth(queue) for queue in queues]


def as_announced(host: Host) -> Host:
    """`host` with its numbers as lua/announce.lua keeps them: in thousandths."""
    return Host(host.owner, {tier: _thousandths(service) for tier, service in host.tiers.items()})


def living(store: Store) -> list[Host]:
    """The hosts whose time is not up, the first to go first."""
    lives = sorted((end_ms, host.owner) for host, end_ms in store.hosts.values() if end_ms > store.now_ms())
    return [store.hosts[owner][0] for _, owner in lives]


def place(store: Store, job: Job) -> Position:
    """Where it will be served soonest, as `place` in lua/common.lua says."""
    id, found = job.submission.id, []
    state = job.state
    if state == "following":
        job = store.jobs.get(store.leaders.get(job.flight, ""), job)
    queues = {"queued": (INGRESS,), "ready": job.tiers}.get(job.state, ())
    for order, queue in enumerate(queues):
        ahead = _ahead(store, queue, job)
        p50_ms, p90_ms = _start(living(store), queue, ahead)
        found.append((p50_ms, p90_ms, ahead, order, queue))
    if not found:
        return Position(id, state)
    p50_ms, p90_ms, ahead, _, queue = min(found)
    return Position(id, state, queue, ahead, _known(p50_ms), _known(p90_ms))


def _ahead(store: Store, queue: str, job: Job) -> int:
    """How many jobs may go before it, as `ahead_of` in lua/common.lua says."""
    waiting, now_ms = store.waiting(queue), store.now_ms()
    waits = [bounds.max_wait_ms for bounds in store.limits.classes]

    def over(other: Job) -> tuple[int, int]:
        return now_ms - other.submitted_ms - waits[other.priority], other.priority

    rank, turn, mine = waiting.index(job), store.turns.get(queue, 0), job.priority
    aged = [other for other in waiting if waits[other.priority] and over(other) >= (0, 0)]
    ahead = rank + min(sum(other.priority < mine for other in aged), (rank + turn) // (TURNS - 1))
    if job not in aged:
        return ahead
    others = sum(over(other) > over(job) for other in aged if other.priority != mine)
    before = [other.priority for other in waiting[: rank + 1]].count(mine) + others
    return min(ahead, TURNS * before - turn - 1)


def push(store: Store, tier: str, most: int) -> int:
    """What lua/push.lua does; how many were written."""
    waiting, now_ms = store.waiting(tier)[:most], store.now_ms()
    if not waiting or store.pushed.get(tier, 0) > now_ms:
        return 0
    store.pushed[tier] = now_ms + PAUSE_MS
    return sum(_tell(store, job, tier) for job in waiting)


def _tell(store: Store, job: Job, tier: str) -> bool:
    if job.started or not job.submission.stream or store.now_ms() - job.submitted_ms < PATIENCE_MS:
        return False
    stands = place(store, job)
    told = f"{stands.queue} {stands.ahead}"
    if stands.queue != tier or job.told == told:
        return False
    job.told = told
    names = ("queue", "ahead", "start_p50_ms", "start_p90_ms")
    data = json.dumps({name: getattr(stands, name) for name in names}, separators=(",", ":"))
    store.emit(job, "queued", data=data.encode())
    return True


def _start(hosts: list[Host], tier: str, ahead: int) -> tuple[float, float]:
    """Milliseconds until a job with `ahead` before it starts, p50 and p90; infinity when nobody has measured."""
    serving = [host.tiers[tier] for host in hosts if tier in host.tiers]
    milli_hz = sum(round(each.start_hz * 1000) for each in serving)
    if milli_hz == 0:
        return math.inf, math.inf
    raw = max(0, ahead + 1 - sum(each.free for each in serving)) / milli_hz * 1000
    p50 = sum(round(each.start_hz * 1000) * round(each.factor_p50 * 1000) for each in serving) / milli_hz
    p90 = sum(round(each.start_hz * 1000) * round(each.factor_p90 * 1000) for each in serving) / milli_hz
    return math.floor(raw * p50 + 0.5), math.floor(raw * p90 + 0.5)


def _known(ms: float) -> int | None:
    return int(ms) if ms < math.inf else None


def _thousandths(service: Service) -> Service:
    start_hz, p50, p90 = (round(x * 1000) / 1000 for x in (service.start_hz, service.factor_p50, service.factor_p90))
    start_hz = max(start_hz, 0.001 if service.start_hz > 0 else 0.0)
    return Service(service.model, max(service.free, 0), start_hz, p50, p90, service.identity, service.workers)


def _live(store: Store) -> list[Job]:
    found = [job for job in map(store.get, list(store.jobs)) if job and job.state not in TERMINAL]
    return sorted(found, key=lambda job: job.score % CLASS_STRIDE)


def _live_job(job: Job) -> LiveJob:
    runs, sent = job.state == "running", job.submission
    return LiveJob(
        sent.id, job.state, job.priority, sent.tenant, job.submitted_ms, job.queue if runs else "", job.tiers,
        job.claimed_ms if runs else 0, job.owner if runs else "", job.attempt, job.crashes,
    )  # fmt: skip


def _view(job: Job) -> JobView:
    sent = job.submission
    return JobView(
        sent.id, job.state, job.priority, job.attempt, job.crashes, sent.tenant, job.submitted_ms, job.route,
        job.owner, job.body, job.retries, job.reason, job.ended_ms, job.evidence,
    )  # fmt: skip
