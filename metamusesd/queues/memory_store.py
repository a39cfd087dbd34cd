"""Stages 1, 2, 9, 10 · tests · what MemoryQueue keeps: jobs, streams, markers, and who waits for them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from metamusesd.errors import InvalidRequest
from metamusesd.job import MAX_BODY_BYTES, TERMINAL, Result, encode_result
from metamusesd.queues.base import CLASS_STRIDE, INGRESS, Depth, Host, JobEvent, Limits, Submission, Verdict

DEAD_TTL_MS = 86_400_000
MAX_EVIDENCE, MAX_EVIDENCE_BYTES = 8, 16384
MESSAGES = {
    "cancelled": "The job was cancelled.",
    "expired": "The job's deadline passed.",
    "queue_timeout": "The job waited longer than its class may.",
    "dead": "The job was quarantined, because processes crashed under it.",
}


@dataclass(slots=True)
class Job:
    """The hash of one job."""

    submission: Submission
    score: int
    submitted_ms: int
    deadline_ms: int
    boxes: list[str]
    state: str = "queued"
    token: str = ""
    back: str = ""
    owner: str = ""
    queue: str = INGRESS
    tiers: tuple[str, ...] = ()
    route: bytes = b""
    attempt: int = 1
    crashes: int = 0
    started: bool = False
    written: int = 0
    claimed_ms: int = 0
    lease_end_ms: int = 0
    due_ms: int = 0
    ends_ms: int = 0  # the record vanishes then
    body: bytes = b""
    result: bytes | None = None
    ended_ms: int = 0
    told: str = ""  # the position that was pushed last
    retries: int = 0
    reason: str = ""
    evidence: tuple[bytes, ...] = ()

    aged: bool = False  # as it was claimed the last time
    flight: str = ""
    patient: bool = False  # no class time-out ends it: it leads for a higher class, or inherited a started flight
    raised: bool = False  # a follower of a higher class has come since the last append

    @property
    def priority(self) -> int:
        return 3 - self.score // CLASS_STRIDE

    def keep(self, piece: bytes) -> None:
        """Put one piece to the evidence; the oldest go when there are too many or they are too long."""
        if piece:
            self.evidence += (piece.replace(b"\n", b" ").replace(b"\r", b" "),)
        while len(self.evidence) > MAX_EVIDENCE or sum(len(each) + 1 for each in self.evidence) > MAX_EVIDENCE_BYTES:
            self.evidence = self.evidence[1:]


@dataclass(slots=True)
class Streams:
    """All event streams and mailboxes, and who waits for any of them."""

    entries: dict[str, list[JobEvent]] = field(default_factory=dict)
    count: int = 0

    def add(self, key: str, cap: int, id: str, kind: str, attempt: int, **fields: object) -> None:
        self.count += 1
        stream = self.entries.setdefault(key, [])
        stream.append(JobEvent(f"{self.count}-0", id, kind, attempt, **fields))  # type: ignore[arg-type]
        del stream[:-cap]

    def after(self, key: str, cursor: str) -> list[JobEvent]:
        low = int(cursor.partition("-")[0])
        return [entry for entry in self.entries.get(key, ()) if int(entry.cursor.partition("-")[0]) > low]


class Store:
    """The state of one memory queue, and what the scripts share (lua/common.lua)."""

    def __init__(self, limits: Limits, now_ms: Callable[[], int]) -> None:
        self.limits, self.now_ms = limits, now_ms
        self.published = Limits()  # what `configure` wrote: producers are held to it
        self.drain_hz = 0.0  # jobs that the live hosts start in a second
        self.jobs: dict[str, Job] = {}
        self.markers: set[str] = set()
        self.touched: set[str] = set()
        self.streams = Streams()
        self.turns: dict[str, int] = {}  # by queue: claims since the last turn of an aged job
        self.unserved: dict[str, int] = {}  # by tier: since when no live host serves it
        self.hosts: dict[str, tuple[Host, int]] = {}  # and until when each lives
        self.pushed: dict[str, int] = {}  # by tier: until when nobody else pushes positions
        self.dropped: dict[str, int] = {}  # by id: until when a repeated drop is answered
        self.leaders: dict[str, str] = {}  # by flight: the id of the job that is computed for all of it
        self.landed: Callable[[Store, Job, str], None] = lambda store, job, state: None  # memory_flights.ended
        self.idem: dict[tuple[str, str], str] = {}
        self._sequence = 0
        self._changed = asyncio.Event()

    def get(self, id: str) -> Job | None:
        job = self.jobs.get(id)
        if job and job.ends_ms and job.ends_ms <= self.now_ms():
            del self.jobs[id]
            self.streams.entries.pop(f"events:{id}", None)
            return None
        return job

    def accept(self, sent: Submission) -> tuple[str, str, str, str]:
        keyed = self.idem.get((sent.tenant, sent.idempotency_key), "") if sent.idempotency_key else ""
        for id, what in ((keyed, "idempotency_key"), (sent.id, "id")):
            job = self.get(id)
            if job is None:
                continue
            if job.submission.digest != sent.digest:
                return "conflict", id, what, "0"
            if sent.reply_to and sent.reply_to not in job.boxes and job.state not in TERMINAL:
                job.boxes.append(sent.reply_to)
            return "duplicate", id, job.state, "0"
        bound, jobs = self._bound_reached(sent)
        if bound:
            return "full", sent.id, bound, str(self.room_after_ms(jobs))
        self._sequence += 1
        now = self.now_ms()
        self.jobs[sent.id] = Job(
            sent, (3 - sent.priority) * CLASS_STRIDE + self._sequence, now,
            now + sent.deadline_ms if sent.deadline_ms else 0, [sent.reply_to] if sent.reply_to else [], body=sent.body,
        )  # fmt: skip
        if sent.idempotency_key:
            self.idem[(sent.tenant, sent.idempotency_key)] = sent.id
        return "new", sent.id, "queued", "0"

    def _bound_reached(self, sent: Submission) -> tuple[str, int]:
        """The bound that is reached, and the jobs that it counts."""
        limits, live = self.published, [job for job in self.jobs.values() if job.state not in TERMINAL]
        class_most = limits.classes[sent.priority].max_queue_size
        if len(live) >= limits.max_jobs:
            return "jobs", limits.max_jobs
        if sum(len(job.submission.body) for job in live) + len(sent.body) > limits.max_bytes:
            return "bytes", len(live)
        if sum(job.submission.tenant == sent.tenant for job in live) >= limits.max_tenant_jobs:
            return "tenant_jobs", limits.max_tenant_jobs
        if 0 < class_most <= sum(job.priority == sent.priority for job in live):
            return "class_jobs", class_most
        return "", 0

    def room_after_ms(self, jobs: int) -> int:
        """When a hundredth of `jobs` will have started."""
        return round(min(max(max(jobs / 100, 1) * 1000 / self.drain_hz, 100), 60_000)) if self.drain_hz > 0 else 1000

    def held(self, id: str, token: str) -> tuple[Job | None, Verdict]:
        """The job if `token` holds it, and the verdict for the bearer."""
        job = self.get(id)
        if job is None or not token or job.token != token:
            return None, Verdict.LOST
        if job.state == "running":
            return job, Verdict.OK
        return None, Verdict(job.state) if job.state in ("cancelled", "expired") else Verdict.LOST

    def overdue(self, job: Job) -> bool:
        return 0 < job.deadline_ms <= self.now_ms()

    def put_back(self, job: Job) -> None:
        job.aged = False
        job.state, job.token, job.owner = "ready" if job.tiers else "queued", "", ""
        for queue in job.tiers or (INGRESS,):
            self.touched.add(queue)

    def emit(self, job: Job, kind: str, **fields: object) -> None:
        if not job.submission.stream:
            return
        id, limits = job.submission.id, self.limits
        self.streams.add(f"events:{id}", limits.stream_cap, id, kind, job.attempt, **fields)
        for box in job.boxes:
            self.streams.add(f"mail:{box}", limits.mail_cap, id, kind, job.attempt, **fields)
        self.wake()

    def finish(self, job: Job, state: str, result: bytes) -> None:
        id, limits = job.submission.id, self.limits
        ttl_ms = DEAD_TTL_MS if state == "dead" else limits.result_ttl_s * 1000
        job.state, job.result, job.ends_ms = str(state), result, self.now_ms() + ttl_ms
        job.ended_ms, job.body = self.now_ms(), job.body if state == "dead" else b""
        self.streams.add(f"events:{id}", limits.stream_cap, id, str(state), job.attempt, data=result)
        for box in job.boxes:
            self.streams.add(f"mail:{box}", limits.mail_cap, id, str(state), job.attempt, data=result)
        self.wake()
        self.landed(self, job, str(state))

    def fail(self, job: Job, state: str) -> None:
        error = {"code": state, "message": MESSAGES[state], "retryable": False}
        result = Result(request_id=job.submission.id, state=state, attempt=job.attempt, error=error)
        self.finish(job, state, encode_result(result))

    def refuse(self, job: Job) -> None:
        """It waited longer than its class may."""
        live = sum(other.state not in TERMINAL for other in self.jobs.values())
        error = {"code": "queue_timeout", "message": MESSAGES["queue_timeout"], "retryable": True,
                 "retry_after_s": self.room_after_ms(live) / 1000}  # fmt: skip
        result = Result(request_id=job.submission.id, state="failed", attempt=job.attempt, error=error)
        self.finish(job, "failed", encode_result(result))

    def give_back(self, job: Job, reason: str, delay_ms: int = 0, burnt: bool = False) -> None:
        job.back, job.reason = job.token, reason
        if job.started and (burnt or job.written):
            job.started, job.written = False, 0
            self.emit(job, "restarted", data=reason.encode())
        if delay_ms > 0:
            job.state, job.token, job.owner, job.due_ms = "delayed", "", "", self.now_ms() + delay_ms
        else:
            self.put_back(job)

    def waiting(self, queue: str) -> list[Job]:
        jobs = self.jobs.values()
        found = [
            j for j in jobs if (j.state == "queued" if queue == INGRESS else j.state == "ready" and queue in j.tiers)
        ]
        return sorted(found, key=lambda job: job.score)

    # waiting

    def arm(self, queue: str) -> None:
        self.markers.add(queue)
        self.wake()

    def close(self) -> None:
        """Arm the markers of the queues that this call touched, or disarm them when nothing is left there."""
        for queue in self.touched:
            if self.waiting(queue):
                self.arm(queue)
            else:
                self.markers.discard(queue)
        self.touched.clear()

    def wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                while not ready():
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def read(self, key: str, after: str, block_ms: int) -> list[JobEvent]:
        cursor = str(self.streams.count) if after == "$" else after
        if block_ms > 0:
            await self.until(lambda: bool(self.streams.after(key, cursor)), block_ms / 1000)
        return self.streams.after(key, cursor)

    def depth(self, queue: str) -> Depth:
        by_class, waiting, now = [0, 0, 0, 0], self.waiting(queue), self.now_ms()
        for job in waiting:
            by_class[job.priority] += 1
        oldest_ms = max((now - job.submitted_ms for job in waiting), default=0)
        return Depth(queue, (by_class[0], by_class[1], by_class[2], by_class[3]), oldest_ms)


def check(job: Submission) -> None:
    """What lua/submit.lua refuses."""
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", job.id):
        raise InvalidRequest("id", "not a name", "use 1 to 128 of A-Z a-z 0-9 _ . : -")
    if len(job.body) > MAX_BODY_BYTES:
        raise InvalidRequest("body", f"{len(job.body)} bytes long", f"send at most {MAX_BODY_BYTES}")
    if job.priority not in range(4):
        raise InvalidRequest("priority", "not 0 to 3", "give 0 (low) to 3 (critical)")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", job.tenant):
        raise InvalidRequest("tenant", "not a name", "use 1 to 64 of A-Z a-z 0-9 _ . -")
    if not 0 <= job.deadline_ms <= 86_400_000:
        raise InvalidRequest("deadline_ms", "not 0 to 86400000", "give milliseconds from now")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{0,64}", job.reply_to):
        raise InvalidRequest("reply_to", "not a name", "use up to 64 of A-Z a-z 0-9 _ . -")
