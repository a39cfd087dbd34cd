"""Stages 1, 9, 10 · dispatcher and clients · what can be seen of a queue on Redis: its reads, none changes anything."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from metamusesd.job import TERMINAL
from metamusesd.queues.base import CLASS_STRIDE, INGRESS, Depth, Host, JobEvent, JobView, Position, Service
from metamusesd.queues.census import LiveJob
from metamusesd.queues.redis_door import RedisDoor

READ_COUNT = 1000  # stream entries of one read
VIEW_FIELDS = ("state", "prio", "attempt", "crashes", "tenant", "submitted", "route", "owner", "retries", "reason",
               "ended", "evidence")  # fmt: skip

LIVE_FIELDS = ("state", "prio", "tenant", "submitted", "queue", "tiers", "claimed", "owner", "attempt", "crashes")


class RedisViews:
    """The reading half of RedisQueue, which opens the door."""

    prefix: str
    _door: RedisDoor

    async def view(self, id: str) -> JobView | None:
        """See base.Queue."""
        fields = await self._door.ask("HMGET", f"{self.prefix}:job:{id}", *VIEW_FIELDS, "body")
        return _unpack_view(id, fields) if fields[0] is not None else None

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

    async def position(self, id: str) -> Position | None:
        """See base.Queue and lua/position.lua."""
        reply = await self._door.script("position", id)
        if reply is None:
            return None
        state, queue, ahead, p50_ms, p90_ms = reply
        return Position(id, state.decode(), queue.decode(), ahead, _known(p50_ms), _known(p90_ms))

    async def hosts(self) -> list[Host]:
        """See base.Queue. A host's hash vanishes when its time is up; that is the truth about it."""
        owners = [owner.decode() for owner in await self._door.ask("ZRANGE", f"{self.prefix}:hosts", 0, -1)]
        said = await asyncio.gather(*(self._door.ask("HGETALL", f"{self.prefix}:host:{owner}") for owner in owners))
        return [_unpack_host(owner, fields) for owner, fields in zip(owners, said, strict=True) if fields]

    async def dead(self, count: int = 100) -> list[JobView]:
        """See base.Queue. Without their bodies: those are in `view`."""
        ids = [id.decode() for id in await self._door.ask("ZREVRANGE", f"{self.prefix}:dead", 0, max(count, 1) - 1)]
        keys = (f"{self.prefix}:job:{id}" for id in ids)
        found = await asyncio.gather(*(self._door.ask("HMGET", key, *VIEW_FIELDS) for key in keys))
        return [_unpack_view(id, [*fields, b""]) for id, fields in zip(ids, found, strict=True) if fields[0] == b"dead"]

    async def living(self) -> int:
        """See census.Census."""
        count: int = await self._door.ask("ZCARD", f"{self.prefix}:live")
        return count

    async def live(self, skip: int, count: int) -> tuple[int, list[LiveJob]]:
        """See census.Census."""
        ask, last = self._door.ask, skip + max(count, 1) - 1
        clock, raw = await asyncio.gather(ask("TIME"), ask("ZRANGE", f"{self.prefix}:live", skip, last))
        ids = [id.decode() for id in raw]
        found = await asyncio.gather(*(ask("HMGET", f"{self.prefix}:job:{id}", *LIVE_FIELDS) for id in ids))
        now_ms = int(clock[0]) * 1000 + int(clock[1]) // 1000
        pairs = zip(ids, found, strict=True)
        return now_ms, [_unpack_live(id, fields) for id, fields in pairs if _lives(fields[0])]

    async def depths(self, queues: Sequence[str]) -> list[Depth]:
        """See base.Queue."""
        return list(await asyncio.gather(*(self._depth(queue) for queue in queues)))

    async def kept(self) -> tuple[int, int]:
        """See base.Queue."""
        answers = f"{self.prefix}:answers"
        count, size = await asyncio.gather(
            self._door.ask("ZCARD", answers), self._door.ask("HGET", f"{answers}:bytes", "sum")
        )
        return count, number(size or b"0")

    # how

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
        if not await ask("ZCARD", key):  # most queues are empty; the rest takes a dozen commands
            return Depth(queue, (0, 0, 0, 0))
        counts = await asyncio.gather(*(ask("ZCOUNT", key, *bounds) for bounds in ranges))
        heads = await asyncio.gather(*(ask("ZRANGEBYSCORE", key, *bounds, "LIMIT", 0, 1) for bounds in ranges))
        ids = [head[0].decode() for head in heads if head]
        times = await asyncio.gather(ask("TIME"), *(ask("HGET", f"{self.prefix}:job:{id}", "submitted") for id in ids))
        now_ms = int(times[0][0]) * 1000 + int(times[0][1]) // 1000
        oldest_ms = max((now_ms - number(time, now_ms) for time in times[1:] if time), default=0)
        return Depth(queue, (counts[0], counts[1], counts[2], counts[3]), oldest_ms)


def number(text: bytes, default: int = 0) -> int:
    """What should be a number in a hash or a stream; one that somebody spoilt must not stop the others."""
    try:
        return int(text)
    except ValueError:
        return default


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _unpack_view(id: str, fields: list[bytes | None]) -> JobView:
    (state, prio, attempt, crashes, tenant, submitted, route, owner, retries, reason, ended, evidence, body) = (
        field or b"" for field in fields
    )
    return JobView(
        id, _text(state), number(prio), number(attempt, 1), number(crashes), _text(tenant), number(submitted), route,
        _text(owner), body, number(retries), _text(reason), number(ended), tuple(evidence.splitlines()),
    )  # fmt: skip


def _lives(state: bytes | None) -> bool:
    return state is not None and _text(state) not in TERMINAL


def _unpack_live(id: str, fields: list[bytes | None]) -> LiveJob:
    state, prio, tenant, submitted, queue, tiers, claimed, owner, attempt, crashes = (field or b"" for field in fields)
    runs = state == b"running"
    return LiveJob(
        id, _text(state), number(prio, 1), _text(tenant), number(submitted), _text(queue) if runs else "",
        tuple(_text(tiers).split()), number(claimed) if runs else 0, _text(owner) if runs else "", number(attempt, 1),
        number(crashes),
    )  # fmt: skip


def _unpack_host(owner: str, fields: list[bytes]) -> Host:
    said = dict(zip(fields[::2], fields[1::2], strict=True))
    tiers = _text(said.get(b"tiers", b"")).split()
    parts = {tier: said.get(f"tier:{tier}".encode(), b"").split(b" ", 6) for tier in tiers}
    return Host(owner, {tier: _unpack_service(*parts[tier]) for tier in tiers if len(parts[tier]) == 7})


def _unpack_service(
    free: bytes, start: bytes, p50: bytes, p90: bytes, workers: bytes, identity: bytes, model: bytes
) -> Service:
    rates = (number(start) / 1000, number(p50) / 1000, number(p90) / 1000)
    known = "" if identity == b"-" else _text(identity)
    return Service(_text(model), number(free), *rates, known, number(workers))


def _known(ms: int) -> int | None:
    return ms if ms >= 0 else None


def _unpack_event(cursor: bytes, fields: list[bytes], id: str = "") -> JobEvent:
    entry = dict(zip(fields[::2], fields[1::2], strict=True))
    return JobEvent(
        cursor=cursor.decode(),
        id=id or _text(entry.get(b"id", b"")),
        kind=_text(entry.get(b"kind", b"")),
        attempt=number(entry.get(b"attempt", b"1"), 1),
        offset=number(entry.get(b"offset", b"0")),
        text=_text(entry.get(b"text", b"")),
        tokens=number(entry.get(b"tokens", b"0")),
        data=entry.get(b"data", b""),
    )
