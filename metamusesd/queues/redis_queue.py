"""Stages 1, 2, 9, 10 · dispatcher and clients · the job queue on Redis: arguments in, replies out.

Every method that changes state is one call of a script in lua/; what the scripts promise stands at their heads, and
what the methods promise in `base.Queue`. This file only packs and unpacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from metamusesd.errors import IdConflict, QueueFault, QueueFull
from metamusesd.queues.answers import Complaint, Recall, Recalled
from metamusesd.queues.base import (
    Append,
    Claim,
    Host,
    Limits,
    Reaped,
    Receipt,
    Requeue,
    Routed,
    Service,
    Settlement,
    Submission,
    Suspect,
    Verdict,
    Want,
    receipt,
)
from metamusesd.queues.redis_door import RedisDoor
from metamusesd.queues.redis_link import Argument
from metamusesd.queues.redis_views import RedisViews, number

BATCH = 1000  # entries of one script call: bounds how long the server is held, here to some 20 ms
VERDICTS = {verdict.value.encode(): verdict for verdict in Verdict}

CLAIM_WIDTH = 15
RECOUNT_MS, RECOUNT_JOBS = 30_000, 1000  # how often the counters are mended, and what one call counts: some 5 ms
FORGET_PASSES = 20
DEFAULTS = Limits()
T = TypeVar("T")
R = TypeVar("R")


class RedisQueue(RedisViews):
    """The queue `prefix` on the Redis server at `url`. Implements base.Queue."""

    def __init__(
        self, url: str, prefix: str = "metamuse", limits: Limits = DEFAULTS, *, timeout_s: float = 5.0
    ) -> None:
        self.prefix = prefix if "{" in prefix else "{" + prefix + "}"
        self._limits = limits
        self._ends = (limits.result_ttl_s, limits.stream_cap, limits.mail_cap)  # what scripts that write events take
        self._door = RedisDoor(url, self.prefix, timeout_s)
        self._claiming = asyncio.Lock()  # the server remembers one claim an owner, for a repeat

    def __repr__(self) -> str:
        return f"<RedisQueue {self._door}>"

    async def open(self) -> None:
        """Connect, check the server, load the scripts."""
        await self._door.open()

    async def check(self) -> None:
        """See base.Queue."""
        await self._door.check()
        if (kind := await self._door.ask("TYPE", f"{self.prefix}:seq")) not in (b"string", b"none"):
            raise QueueFault(f"{self.prefix}:seq is a {kind.decode()}: no job can be submitted; delete it")

    async def configure(self) -> None:
        """See base.Queue."""
        await self._door.script("configure", *_pack_limits(self._limits))

    async def close(self) -> None:
        """Break the connections."""
        self._door.close()

    # producers

    async def submit(self, jobs: Sequence[Submission]) -> list[Receipt | QueueFull | IdConflict]:
        """See base.Queue."""
        return await self._many("submit", (), jobs, _pack_submission, _unpack_receipts)

    async def cancel(self, id: str) -> str:
        """See base.Queue."""
        state: bytes = await self._door.script("cancel", id)
        return state.decode()

    async def complain(self, id: str) -> str:
        """See base.Queue and lua/complain.lua."""
        answer: bytes = await self._door.script("complain", id)
        return answer.decode()

    async def forget(self, *, tenant: str = "", muse: str = "", model: str = "", tag: str = "") -> int:
        """See base.Queue and lua/forget.lua."""
        removed = 0
        for _ in range(FORGET_PASSES):
            cursor, before = b"0", removed
            while True:
                reply = await self._door.script("forget", cursor, BATCH, tenant, muse, model, tag)
                cursor, removed = reply[0], removed + int(reply[1])
                if cursor == b"0":
                    break
            if removed == before:  # hits move answers to the end while this goes through them
                break
        return removed

    async def revive(self, id: str) -> str:
        """See base.Queue and lua/revive.lua."""
        state: bytes = await self._door.script("revive", id)
        return state.decode()

    async def drop(self, id: str) -> str:
        """See base.Queue and lua/drop.lua."""
        answer: bytes = await self._door.script("drop", id)
        return answer.decode()

    # the dispatcher

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        """See base.Queue."""
        timeout_s = max(timeout_s, 0.01)  # Redis 6.2 takes 0.001 for 0, and blocks for ever
        keys = (f"{self.prefix}:marker:{queue}" for queue in queues)
        return await self._door.block(timeout_s, "BLPOP", *keys, timeout_s) is not None

    async def claim(
        self, owner: str, nonce: str, wants: Sequence[Want], routed: Sequence[Routed] = (), *, lease_ms: int
    ) -> list[Claim]:
        """See base.Queue."""
        waits = _by_class(self._limits, "max_wait_ms")
        args: list[Argument] = [*self._ends, owner, nonce, lease_ms, waits, len(wants)]
        for want in wants:
            args += want.queue, min(want.count, BATCH), want.floor
        for job in routed:
            args += job.id, job.token, " ".join(job.tiers), job.route, job.flight
        async with self._claiming:
            return _unpack_claims(await self._door.script("claim", *args))

    async def renew(self, held: Sequence[tuple[str, str]], *, lease_ms: int) -> list[Verdict]:
        """See base.Queue."""
        return await self._many("renew", (lease_ms,), held, lambda pair: pair, _unpack_verdicts)

    async def append(self, pieces: Sequence[Append]) -> list[Verdict]:
        """See base.Queue."""
        return await self._many("append", self._ends, pieces, _pack_append, _unpack_verdicts)

    async def settle(self, ends: Sequence[Settlement]) -> list[Verdict]:
        """See base.Queue."""
        answers = self._limits.answers
        head = (*self._ends, answers.ttl_ms, answers.most, answers.most_bytes)
        return await self._many("settle", head, ends, _pack_settlement, _unpack_verdicts)

    async def requeue(self, jobs: Sequence[Requeue]) -> list[Verdict]:
        """See base.Queue."""
        head = (*self._ends, self._limits.max_crashes)
        return await self._many("requeue", head, jobs, _pack_requeue, _unpack_verdicts)

    async def reap(
        self, owner: str, suspects: Sequence[Suspect] = (), *, tiers: Sequence[str] = (), takeover: bool = False
    ) -> Reaped:
        """See base.Queue."""
        doubted = [part for suspect in suspects for part in (suspect.id, suspect.lease_end_ms)]
        limits = self._limits
        delays = ",".join(str(int(bounds.timeout_action == "delay")) for bounds in limits.classes)
        rules = (limits.strand_ms, _by_class(limits, "timeout_ms"), delays)
        args: list[Argument] = [*self._ends, owner, int(takeover), *rules, len(tiers), *tiers, *doubted]
        try:
            pairs, *lists, more = await self._door.script("reap", *args)
        finally:  # it mends what may be in the way of the other
            await self._door.script("recount", RECOUNT_MS, RECOUNT_JOBS)
        suspects = tuple(Suspect(id.decode(), int(end)) for id, end in zip(pairs[::2], pairs[1::2], strict=True))
        requeued, expired, woken, timed_out, rerouted = (tuple(id.decode() for id in ids) for ids in lists)
        return Reaped(suspects, requeued, expired, woken, timed_out, rerouted, bool(more))

    async def recall(self, asks: Sequence[Recall]) -> list[Recalled]:
        """See base.Queue."""
        return await self._many("recall", (self._limits.answers.repeat_ms,), asks, _pack_recall, _unpack_recalled)

    async def complaints(self, most: int = 100) -> list[Complaint]:
        """See base.Queue."""
        found = await self._door.ask("LPOP", f"{self.prefix}:complaints", most)
        pairs = (entry.decode(errors="replace").rpartition(" ") for entry in found or ())
        return [Complaint(entry, _score(score)) for entry, _, score in pairs]

    async def announce(self, host: Host, ttl_s: float) -> None:
        """See base.Queue."""
        args: list[Argument] = [host.owner, round(ttl_s * 1000)]
        for tier, service in host.tiers.items():
            args += (tier, *_pack_service(service))
        await self._door.script("announce", *args)

    async def push(self, tier: str, most: int = 100) -> int:
        """See base.Queue and lua/push.lua."""
        written: int = await self._door.script("push", *self._ends, tier, min(most, BATCH))
        return written

    # how

    async def _many(
        self, script: str, head: Sequence[Argument], entries: Sequence[T], pack: Callable[[T], Sequence[Argument]],
        unpack: Callable[[list[Any]], list[R]],
    ) -> list[R]:  # fmt: skip
        """One script call for all `entries`, or for each BATCH of them."""
        answers: list[R] = []
        for start in range(0, len(entries), BATCH):
            args = list(head)
            for entry in entries[start : start + BATCH]:
                args += pack(entry)
            answers += unpack(await self._door.script(script, *args))
        return answers


def _pack_limits(limits: Limits) -> list[Argument]:
    args: list[Argument] = []
    for field in fields(limits):
        if field.name not in ("classes", "answers"):
            args += field.name, getattr(limits, field.name)
    for priority, bounds in enumerate(limits.classes):
        for field in fields(bounds):
            args += f"{field.name}:{priority}", getattr(bounds, field.name)
    return args


def _by_class(limits: Limits, name: str) -> str:
    return ",".join(str(getattr(bounds, name)) for bounds in limits.classes)


def _pack_submission(job: Submission) -> Sequence[Argument]:
    return (
        job.id, job.body, job.digest, int(job.priority), job.tenant, job.deadline_ms, job.idempotency_key, job.reply_to,
        int(job.stream),
    )  # fmt: skip


def _pack_append(piece: Append) -> Sequence[Argument]:
    return piece.id, piece.token, piece.offset, len(piece.text), piece.tokens, piece.text


def _pack_settlement(end: Settlement) -> Sequence[Argument]:
    kept = end.answer
    answer = (kept.key, kept.value, kept.labels) if kept else ("", b"", b"")
    return end.id, end.token, str(end.state), end.result, *answer, end.replay, end.replay_tokens


def _pack_recall(ask: Recall) -> Sequence[Argument]:
    return ask.id, ask.asked, len(ask.keys), *ask.keys


def _pack_requeue(job: Requeue) -> Sequence[Argument]:
    what = (job.id, job.token, job.reason, str(job.fault), job.delay_ms, int(job.reroute), job.evidence)
    return *what, " ".join(job.tiers), job.route


def _pack_service(service: Service) -> Sequence[Argument]:
    start, p50, p90 = (round(number * 1000) for number in (service.start_hz, service.factor_p50, service.factor_p90))
    identity = service.identity or "-"
    return (
        service.model,
        identity,
        max(service.free, 0),
        max(start, int(service.start_hz > 0)),
        p50,
        p90,
        service.workers,
    )


def _unpack_verdicts(reply: list[bytes]) -> list[Verdict]:
    return [VERDICTS[verdict] for verdict in reply]


def _unpack_recalled(reply: list[bytes]) -> list[Recalled]:
    triples = zip(reply[::3], reply[1::3], reply[2::3], strict=True)
    return [Recalled(key.decode(), value, kind == b"repeat") for kind, key, value in triples]


def _score(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0  # somebody else has written it


def _unpack_receipts(reply: list[bytes]) -> list[Receipt | QueueFull | IdConflict]:
    texts = [part.decode() for part in reply]
    return [receipt(*texts[at : at + 4]) for at in range(0, len(texts), 4)]


def _unpack_claims(reply: list[bytes]) -> list[Claim]:
    return [_unpack_claim(*reply[at : at + CLAIM_WIDTH]) for at in range(0, len(reply), CLAIM_WIDTH)]


def _unpack_claim(
    id: bytes, token: bytes, queue: bytes, priority: bytes, attempt: bytes, crashes: bytes, body: bytes, route: bytes,
    tenant: bytes, stream: bytes, submitted: bytes, deadline: bytes, claimed: bytes,
    retries: bytes, aged: bytes,
) -> Claim:  # fmt: skip
    return Claim(
        id.decode(), token.decode(), queue.decode(), number(priority), number(attempt, 1), number(crashes), body,
        route, tenant.decode(errors="replace"), stream == b"1", number(submitted), number(deadline), number(claimed),
        number(retries), aged == b"1",
    )  # fmt: skip
