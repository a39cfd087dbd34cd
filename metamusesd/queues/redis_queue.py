"""Stages 1, 2, 9, 10 · dispatcher and clients · the job queue on Redis: arguments in, replies out.

Every method that changes state is one call of a script in lua/; what the scripts promise stands at their heads, and
what the methods promise in `base.Queue`. This file only packs and unpacks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from metamusesd.errors import IdConflict, QueueFull
from metamusesd.job import TERMINAL
from metamusesd.queues.base import (
    CLASS_STRIDE,
    INGRESS,
    Append,
    Claim,
    Depth,
    Host,
    JobEvent,
    JobView,
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
    receipt,
)
from metamusesd.queues.redis_door import RedisDoor
from metamusesd.queues.redis_link import Argument

BATCH = 1000  # entries of one script call: bounds how long the server is held, here to some 20 ms
READ_COUNT = 1000  # stream entries of one read
VIEW_FIELDS = ("state", "prio", "attempt", "crashes", "tenant", "submitted", "route", "owner", "body")
VERDICTS = {verdict.value.encode(): verdict for verdict in Verdict}

CLAIM_WIDTH = 13
DEFAULTS = Limits()
T = TypeVar("T")
R = TypeVar("R")


class RedisQueue:
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

    async def close(self) -> None:
        """Break the connections."""
        self._door.close()

    # producers

    async def submit(self, jobs: Sequence[Submission]) -> list[Receipt | QueueFull | IdConflict]:
        """See base.Queue."""
        limits = self._limits
        head = (limits.max_jobs, limits.max_bytes, limits.max_tenant_jobs)
        return await self._many("submit", head, jobs, _pack_submission, _unpack_receipts)

    async def cancel(self, id: str) -> str:
        """See base.Queue."""
        state: bytes = await self._door.script("cancel", *self._ends, id)
        return state.decode()

    async def view(self, id: str) -> JobView | None:
        """See base.Queue."""
        fields = await self._door.ask("HMGET", f"{self.prefix}:job:{id}", *VIEW_FIELDS)
        if fields[0] is None:
            return None
        state, prio, attempt, crashes, tenant, submitted, route, owner, body = (field or b"" for field in fields)
        return JobView(
            id, state.decode(), int(prio), int(attempt), int(crashes), tenant.decode(), int(submitted), route,
            owner.decode(), body,
        )  # fmt: skip

    async def result(self, id: str) -> bytes | None:
        """See base.Queue."""
        result: bytes | None = await self._door.ask("GET", f"{self.prefix}:result:{id}")
        return result

    async def events(self, id: str, after: str = "0", block_ms: int = 0) -> list[JobEvent]:
        """See base.Queue. The stream's last entry names no result: it is fetched beside it."""
        found = [_unpack_event(*entry, id) for entry in await self._read(f"{self.prefix}:events:{id}", after, block_ms)]
        if found and found[-1].kind in TERMINAL:
            last = found.pop()
            data = await self.result(id)
            found.append(JobEvent(last.cursor, last.id, last.kind, last.attempt, data=data or b""))
        return found

    async def mail(self, name: str, after: str = "0", block_ms: int = 0) -> list[JobEvent]:
        """See base.Queue."""
        return [_unpack_event(*entry) for entry in await self._read(f"{self.prefix}:mail:{name}", after, block_ms)]

    async def depths(self, queues: Sequence[str]) -> list[Depth]:
        """See base.Queue."""
        return list(await asyncio.gather(*(self._depth(queue) for queue in queues)))

    # the dispatcher

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        """See base.Queue."""
        timeout_s = max(timeout_s, 0.001)
        keys = (f"{self.prefix}:marker:{queue}" for queue in queues)
        return await self._door.block(timeout_s, "BLPOP", *keys, timeout_s) is not None

    async def claim(
        self, owner: str, nonce: str, wants: Sequence[Want], routed: Sequence[Routed] = (), *, lease_ms: int
    ) -> list[Claim]:
        """See base.Queue."""
        args: list[Argument] = [*self._ends, owner, nonce, lease_ms, len(wants)]
        for want in wants:
            args += want.queue, min(want.count, BATCH), want.floor
        for job in routed:
            args += job.id, job.token, " ".join(job.tiers), job.route
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
        return await self._many("settle", self._ends, ends, _pack_settlement, _unpack_verdicts)

    async def requeue(self, jobs: Sequence[Requeue]) -> list[Verdict]:
        """See base.Queue."""
        head = (*self._ends, self._limits.max_crashes)
        return await self._many("requeue", head, jobs, _pack_requeue, _unpack_verdicts)

    async def reap(self, owner: str, suspects: Sequence[Suspect] = (), *, takeover: bool = False) -> Reaped:
        """See base.Queue."""
        doubted = [part for suspect in suspects for part in (suspect.id, suspect.lease_end_ms)]
        reply = await self._door.script("reap", *self._ends, owner, int(takeover), *doubted)
        pairs, requeued, expired, woken, more = reply
        return Reaped(
            suspects=tuple(Suspect(id.decode(), int(end)) for id, end in zip(pairs[::2], pairs[1::2], strict=True)),
            requeued=tuple(id.decode() for id in requeued),
            expired=tuple(id.decode() for id in expired),
            woken=tuple(id.decode() for id in woken),
            more=bool(more),
        )

    async def announce(self, host: Host, ttl_s: float) -> None:
        """See base.Queue."""
        rates = json.dumps(host.rates)
        await self._door.script("announce", host.owner, round(ttl_s * 1000), " ".join(host.tiers), rates)

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

    async def _read(self, key: str, after: str, block_ms: int) -> list[tuple[bytes, list[bytes]]]:
        if block_ms > 0:
            command = ("XREAD", "COUNT", READ_COUNT, "BLOCK", block_ms, "STREAMS", key, after)
            reply = await self._door.block(block_ms / 1000, *command)
        else:
            reply = await self._door.ask("XREAD", "COUNT", READ_COUNT, "STREAMS", key, after)
        return reply[0][1] if reply else []

    async def _depth(self, queue: str) -> Depth:
        key = f"{self.prefix}:{queue}" if queue == INGRESS else f"{self.prefix}:ready:{queue}"
        ranges = [(f"{(3 - p) * CLASS_STRIDE}", f"({(4 - p) * CLASS_STRIDE}") for p in range(4)]
        ask = self._door.ask
        counts = await asyncio.gather(*(ask("ZCOUNT", key, *bounds) for bounds in ranges))
        heads = await asyncio.gather(*(ask("ZRANGEBYSCORE", key, *bounds, "LIMIT", 0, 1) for bounds in ranges))
        ids = [head[0].decode() for head in heads if head]
        times = await asyncio.gather(ask("TIME"), *(ask("HGET", f"{self.prefix}:job:{id}", "submitted") for id in ids))
        now_ms = int(times[0][0]) * 1000 + int(times[0][1]) // 1000
        oldest_ms = max((now_ms - int(time) for time in times[1:] if time), default=0)
        return Depth(queue, (counts[0], counts[1], counts[2], counts[3]), oldest_ms)


def _pack_submission(job: Submission) -> Sequence[Argument]:
    return (
        job.id, job.body, job.digest, int(job.priority), job.tenant, job.deadline_ms, job.idempotency_key, job.reply_to,
        int(job.stream),
    )  # fmt: skip


def _pack_append(piece: Append) -> Sequence[Argument]:
    return piece.id, piece.token, piece.offset, len(piece.text), piece.tokens, piece.text


def _pack_settlement(end: Settlement) -> Sequence[Argument]:
    return end.id, end.token, str(end.state), end.result


def _pack_requeue(job: Requeue) -> Sequence[Argument]:
    crashed = job.crashed + (job.crashed and job.alone)
    return job.id, job.token, job.reason, crashed, int(job.burn), job.delay_ms, int(job.reroute)


def _unpack_verdicts(reply: list[bytes]) -> list[Verdict]:
    return [VERDICTS[verdict] for verdict in reply]


def _unpack_receipts(reply: list[bytes]) -> list[Receipt | QueueFull | IdConflict]:
    texts = [part.decode() for part in reply]
    return [receipt(*texts[at : at + 3]) for at in range(0, len(texts), 3)]


def _unpack_claims(reply: list[bytes]) -> list[Claim]:
    return [_unpack_claim(*reply[at : at + CLAIM_WIDTH]) for at in range(0, len(reply), CLAIM_WIDTH)]


def _unpack_claim(
    id: bytes, token: bytes, queue: bytes, priority: bytes, attempt: bytes, crashes: bytes, body: bytes, route: bytes,
    tenant: bytes, stream: bytes, submitted: bytes, deadline: bytes, claimed: bytes,
) -> Claim:  # fmt: skip
    return Claim(
        id.decode(), token.decode(), queue.decode(), int(priority), int(attempt), int(crashes), body, route,
        tenant.decode(), stream == b"1", int(submitted), int(deadline), int(claimed),
    )  # fmt: skip


def _unpack_event(cursor: bytes, fields: list[bytes], id: str = "") -> JobEvent:
    entry = dict(zip(fields[::2], fields[1::2], strict=True))
    return JobEvent(
        cursor=cursor.decode(),
        id=id or entry[b"id"].decode(),
        kind=entry[b"kind"].decode(),
        attempt=int(entry[b"attempt"]),
        offset=int(entry.get(b"offset", 0)),
        text=entry.get(b"text", b"").decode(),
        tokens=int(entry.get(b"tokens", 0)),
        data=entry.get(b"data", b""),
    )
