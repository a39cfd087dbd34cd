"""The door to the job queue: what producers and the dispatcher may ask of it, and in which words.

Two implementations stand behind this protocol and pass one contract suite: `redis_queue` (the real one; every method
that changes state is one Lua call, see queues/lua/) and `memory` (the fake of the unit tests). A job's way:

    submit ─► ingress ─claim─► (leased) ─claim(routed)─► ready:<tier> … ─claim─► (leased) ─settle─► terminal state
                                  └─ settle (a cache hit, a refusal)          └─ requeue ─► ready (given back)

**The claim token is the fence.** Every claim mints one (`<nonce>:<n>`); renew, append, settle and requeue name it, and
a call with an old token changes nothing and gets the verdict `lost`. All calls are idempotent: the same call again,
after a lost reply, gets the same answer. All times are milliseconds of the Redis server's clock, all durations
say their unit.

Every method raises QueueUnavailable when Redis cannot be asked, QueueFault when a script stumbled over a foreign key,
QueueRefused when Redis must be configured differently; nothing else of the vendor's escapes.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from metamusesd.errors import IdConflict, QueueFull
from metamusesd.queues.answers import AnswerLimits, Answers, Kept
from metamusesd.queues.census import Census

INGRESS = "ingress"
CLASS_STRIDE = 2**44  # score = (3 - priority) · 2⁴⁴ + sequence: highest class first, FIFO inside; exact in a double


class Verdict(enum.StrEnum):
    """What became of a fenced call."""

    OK = "ok"
    CANCELLED = "cancelled"  # the job was cancelled; stop at once
    EXPIRED = "expired"  # its deadline passed; stop at once
    RAISED = "raised"  # ok, and a job of a higher class follows this one: `view` tells the class that it has now
    LOST = "lost"  # the token is not the job's any more: somebody else holds it, or it ended, or it is gone


class Fault(enum.StrEnum):
    """Why a job is given back, and so what it costs the job."""

    NONE = "none"  # nothing: it runs again as if it had not been claimed
    KILLED = "killed"  # an attempt: its worker was killed from outside, the job is innocent
    ERROR = "error"  # an attempt and a retry: a retryable error of the engine
    CRASH = "crash"  # an attempt and a crash: its worker died, and other jobs were in it
    CRASH_ALONE = "crash_alone"  # the same, and it was alone there: only such a crash may make it `dead`


@dataclass(frozen=True, slots=True)
class ClassLimits:
    """What holds for one class of jobs."""

    max_queue_size: int = 0  # unfinished jobs of this class; 0: only Limits.max_jobs counts
    max_wait_ms: int = 0  # a job that has waited longer is aged; 0: never
    timeout_ms: int = 0  # how long a job may wait for its first start; 0: for ever
    timeout_action: str = "reject"  # reject: it fails with queue_timeout · delay: it goes on as class low


NO_CLASS_LIMITS = (ClassLimits(), ClassLimits(), ClassLimits(), ClassLimits())


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds and lifetimes, kept inside the scripts. Counts are jobs that are not terminal. A daemon publishes its
    limits with `configure`; every producer, in any language, is held to those."""

    max_jobs: int = 100_000
    max_bytes: int = 1 << 30  # of live job bodies
    max_tenant_jobs: int = 50_000
    max_crashes: int = 3  # from this crash on, one that it had alone makes a job `dead`
    result_ttl_s: int = 600
    stream_cap: int = 10_000  # entries of one event stream
    mail_cap: int = 20_000  # entries of one mailbox
    strand_ms: int = 60_000  # when no live host has served a tier for so long, its jobs are routed again
    classes: tuple[ClassLimits, ClassLimits, ClassLimits, ClassLimits] = NO_CLASS_LIMITS  # by priority, low first
    answers: AnswerLimits = AnswerLimits()


@dataclass(frozen=True, slots=True)
class Submission:
    """One validated request on its way in."""

    id: str
    body: bytes
    digest: str  # job.body_digest: tells a repeated submit from a conflicting one
    priority: int
    tenant: str = "default"
    deadline_ms: int = 0  # from now; 0: none
    idempotency_key: str = ""
    reply_to: str = ""
    stream: bool = True  # False: no events but the last one


@dataclass(frozen=True, slots=True)
class Receipt:
    """The job that answers a submit: the new one, or the one that was there already (`duplicate`)."""

    id: str
    state: str
    duplicate: bool = False


def receipt(kind: str, id: str, detail: str, retry_after_ms: str) -> Receipt | QueueFull | IdConflict:
    """The answer to one submission, from the four words of lua/submit.lua."""
    if kind == "full":
        text = f"The queue is full: the bound on {detail} is reached."
        return QueueFull(text, retry_after_s=int(retry_after_ms) / 1000, bound=detail, id=id)
    if kind == "conflict":
        return IdConflict(f"This {detail} already names another request: job {id}.", id=id, by=detail)
    return Receipt(id, detail, duplicate=kind == "duplicate")


@dataclass(frozen=True, slots=True)
class Want:
    """Up to `count` jobs from the head of `queue`, none of a class under `floor`. None at all: its marker, which was
    popped by somebody without room, is armed again for the others."""

    queue: str  # INGRESS or a tier
    count: int
    floor: int = 0


@dataclass(frozen=True, slots=True)
class Routed:
    """An analysed ingress job: it moves to `ready` of every tier of `tiers`, in the same call as the next claim."""

    id: str
    token: str
    tiers: tuple[str, ...]
    route: bytes  # job.encode_route
    flight: str = ""  # digest: it follows a live job that has the same, or leads those to come; empty: it does neither


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that this owner holds now, until its lease ends."""

    id: str
    token: str
    queue: str  # where it was claimed: INGRESS or a tier
    priority: int
    attempt: int  # 1 for the first run
    crashes: int
    body: bytes  # as submitted; may be garbage when a producer wrote it raw: parse before use
    route: bytes  # b"" from INGRESS
    tenant: str
    stream: bool
    submitted_ms: int
    deadline_ms: int  # absolute; 0: none
    claimed_ms: int
    retries: int = 0  # retryable errors so far
    aged: bool = False  # it has waited past its class' limit: it is not pre-empted


@dataclass(frozen=True, slots=True)
class Append:
    """New text of a running job, at `offset` Unicode characters of this attempt. No text: ask for the verdict."""

    id: str
    token: str
    offset: int = 0
    text: str = ""
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of a job. `result` is job.encode_result of a Result whose state is `state`. `answer` is kept if this call
    ends the job as done; `replay`: the text of an answer from a cache, for the readers of the stream."""

    id: str
    token: str
    state: str
    result: bytes
    answer: Kept | None = None
    replay: str = ""
    replay_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Requeue:
    """A job given back to its queues, with its old score. `fault`: what that costs it. `tiers`, `route`: to others."""

    id: str
    token: str
    reason: str  # a code: worker_died, drain, no_capacity, …
    fault: Fault = Fault.NONE
    delay_ms: int = 0
    reroute: bool = False  # back to ingress instead of ready
    evidence: bytes = b""  # of a crash: one JSON object, kept with the job for `metamusesd dead show`
    tiers: tuple[str, ...] = ()
    route: bytes = b""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A lease that was seen expired; it is reaped when seen again with the same end."""

    id: str
    lease_end_ms: int


@dataclass(frozen=True, slots=True)
class Reaped:
    """What one sweep did, and which leases it doubts."""

    suspects: tuple[Suspect, ...] = ()
    requeued: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    woken: tuple[str, ...] = ()  # delayed jobs that are due
    timed_out: tuple[str, ...] = ()  # waited longer than their class may: ended, or put behind the others
    rerouted: tuple[str, ...] = ()  # no live host serves their tiers any more: back to ingress
    more: bool = False  # a bound stopped the sweep: call again soon


@dataclass(frozen=True, slots=True)
class JobView:
    """How a job stands, for a producer or an operator."""

    id: str
    state: str
    priority: int
    attempt: int
    crashes: int
    tenant: str
    submitted_ms: int
    route: bytes = b""
    owner: str = ""
    body: bytes = b""
    retries: int = 0
    reason: str = ""  # why it was given back the last time
    ended_ms: int = 0
    evidence: tuple[bytes, ...] = ()  # JSON objects, one a crash, oldest first


@dataclass(frozen=True, slots=True)
class Position:
    """Where a job stands, and when it will start as far as anybody can tell. Computed when asked."""

    id: str
    state: str
    queue: str = ""  # where it will be served soonest; INGRESS while it is not routed; empty when it waits nowhere
    ahead: int = 0  # jobs that go first there
    start_p50_ms: int | None = None  # from now; None: not measured yet
    start_p90_ms: int | None = None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One entry of a job's event stream or of a mailbox. kind: queued, started, token, restarted, or terminal.

    `queued` carries the position as JSON {queue, ahead, start_p50_ms, start_p90_ms} in `data`, a terminal kind the
    result, `restarted` the reason: its reader starts again from offset 0. `offset` and `attempt` as in Append.
    """

    cursor: str  # the stream entry's id: read on after it
    id: str
    kind: str
    attempt: int = 1
    offset: int = 0
    text: str = ""
    tokens: int = 0
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Depth:
    """How many jobs wait in one queue, by class (index = priority), and how old its oldest head is."""

    queue: str
    by_class: tuple[int, int, int, int]
    oldest_ms: int = 0  # age


@dataclass(frozen=True, slots=True)
class Service:
    """How one host serves one tier. `start_hz` and the two factors make the predictions of `position`:

        start_pX = factor_pX · (jobs ahead + 1 - free places) / (sum of start_hz over the live hosts)

    The factors are quantiles of (real wait / raw prediction) over the last jobs, so that the prediction is calibrated.
    """

    model: str
    free: int = 0  # places that a job could take now
    start_hz: float = 0.0  # jobs started per second while jobs waited; 0: not measured yet
    factor_p50: float = 1.0
    factor_p90: float = 2.0
    identity: str = ""  # digest of all that makes its answers (cache.partition); empty: not known yet
    workers: int = 1  # ready now; 0: the tier is configured here, and nobody serves it


@dataclass(frozen=True, slots=True)
class Host:
    """A live dispatcher, as it announces itself: what it serves, by tier."""

    owner: str
    tiers: dict[str, Service]


def cancels(owner: str) -> str:
    """What `wait` is to be told for it; no tier has a name like that."""
    return f"cancels:{owner}"


class Queue(Answers, Census, Protocol):
    """One connection to one queue (prefix). Safe for many concurrent calls of one event loop."""

    async def open(self) -> None:
        """Connect, check version and eviction policy (QueueRefused), load the scripts. Legal twice."""

    async def check(self) -> None:
        """Raise the trouble that no other call of a dispatcher would meet: an eviction policy that would lose jobs, a
        sequence that is no number."""

    async def configure(self) -> None:
        """Publish this queue's limits: from now on they hold for every producer. For the daemon only."""

    async def close(self) -> None:
        """Legal twice."""

    # producers

    async def submit(self, jobs: Sequence[Submission]) -> list[Receipt | QueueFull | IdConflict]:
        """Put all in, in order, in one call; each gets its own answer."""

    async def cancel(self, id: str) -> str:
        """Settle as cancelled unless it ended before. Returns its state then; `gone` if there is none."""

    async def view(self, id: str) -> JobView | None:
        """None: no such job."""

    async def result(self, id: str) -> bytes | None:
        """The result JSON of a terminal job, or None."""

    async def events(self, id: str, after: str = "0", block_ms: int = 0) -> list[JobEvent]:
        """The job's events after the cursor; waits up to `block_ms` for one."""

    async def mail(self, name: str, after: str = "0", block_ms: int = 0) -> list[JobEvent]:
        """The same for a mailbox. `after="$"`: from now on."""

    async def position(self, id: str) -> Position | None:
        """Where it stands and when it may start. None: no such job."""

    async def hosts(self) -> list[Host]:
        """The live hosts."""

    async def dead(self, count: int = 100) -> list[JobView]:
        """The quarantined jobs, newest first."""

    async def revive(self, id: str) -> str:
        """Give a dead job another life, without crashes. Its state then, `gone`, or what it is instead of dead."""

    async def drop(self, id: str) -> str:
        """Forget a dead job. `dropped`, `gone`, or what it is instead of dead."""

    async def depths(self, queues: Sequence[str]) -> list[Depth]:
        """For status and metrics."""

    # the dispatcher

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        """Block until a marker of one of `queues` says that there may be work. A hint: claim whatever it returns. With
        `cancels(owner)` also when a job that this owner runs was cancelled."""

    async def claim(
        self, owner: str, nonce: str, wants: Sequence[Want], routed: Sequence[Routed] = (), *, lease_ms: int
    ) -> list[Claim]:
        """First move `routed` to their ready queues, then claim what is wanted. The same nonce: the same answer."""

    async def renew(self, held: Sequence[tuple[str, str]], *, lease_ms: int) -> list[Verdict]:
        """Prolong the leases of (id, token) pairs."""

    async def append(self, pieces: Sequence[Append]) -> list[Verdict]:
        """Write token events of many jobs. Offsets already written are skipped and answered OK."""

    async def settle(self, ends: Sequence[Settlement]) -> list[Verdict]:
        """End jobs: OK if this call (or an equal one before it) ended it; else what happened instead."""

    async def requeue(self, jobs: Sequence[Requeue]) -> list[Verdict]:
        """Give jobs back."""

    async def reap(
        self, owner: str, suspects: Sequence[Suspect] = (), *, tiers: Sequence[str] = (), takeover: bool = False
    ) -> Reaped:
        """Sweep deadlines, delayed jobs, expired leases, class time-outs in ingress and in the queues of `tiers`, and
        `tiers` that no live host serves; recount the counters now and then. `takeover` first takes back, unburnt, what
        the same instance (owner = `<instance>:<nonce>`) holds under another nonce."""

    async def announce(self, host: Host, ttl_s: float) -> None:
        """Register this dispatcher among the live hosts."""

    async def push(self, tier: str, most: int = 100) -> int:
        """Write `queued` events with their position to the first `most` jobs that wait for `tier` and want events,
        when it has changed. One dispatcher a second does it, whoever comes first. How many were written."""
