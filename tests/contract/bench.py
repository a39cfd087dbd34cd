"""The bench of the contract suites: a queue under test, and short words for what tests do with it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from metamusesd.errors import IdConflict, QueueFull
from metamusesd.queues.base import (
    INGRESS,
    Claim,
    Limits,
    Queue,
    Receipt,
    Routed,
    Settlement,
    Submission,
    Verdict,
    Want,
)
from metamusesd.queues.memory import MemoryQueue
from metamusesd.queues.redis_door import RedisDoor
from metamusesd.queues.redis_queue import RedisQueue

OWNER, LEASE_MS = "host-a:1", 60_000
OK, CANCELLED, EXPIRED, LOST = Verdict.OK, Verdict.CANCELLED, Verdict.EXPIRED, Verdict.LOST
_prefixes = itertools.count()


@dataclass
class Bench:
    """A queue under test. `door` reaches the Redis behind it; None for the fake."""

    queue: Queue
    door: RedisDoor | None
    again: Callable[[Limits], Awaitable[Queue]]
    nonces: Callable[[], int] = field(default_factory=lambda: itertools.count(1).__next__)

    async def submit(self, *ids: str, priority: int = 1, **fields: object) -> list[Receipt | QueueFull | IdConflict]:
        jobs = [Submission(id, b"{}", "digest", priority, **fields) for id in ids]  # type: ignore[arg-type]
        return await self.queue.submit(jobs)

    async def claim(
        self,
        queue: str = INGRESS,
        count: int = 100,
        floor: int = 0,
        owner: str = OWNER,
        lease_ms: int = LEASE_MS,
        routed: tuple[Routed, ...] = (),
    ) -> list[Claim]:
        wants, nonce = [Want(queue, count, floor)], f"n{self.nonces()}"
        return await self.queue.claim(owner, nonce, wants, routed, lease_ms=lease_ms)

    async def run(self, id: str = "a", tiers: tuple[str, ...] = ("fast",), lease_ms: int = LEASE_MS, owner: str = OWNER,
                  **fields: object) -> Claim:  # fmt: skip
        """Submit, route and claim one job from the first of its tiers."""
        await self.submit(id, **fields)
        (job,) = await self.claim(owner=owner)
        (running,) = await self.claim(tiers[0], owner=owner, lease_ms=lease_ms, routed=(routed(job, *tiers),))
        return running

    async def set_sequence(self, value: int) -> None:
        if self.door:
            await self.door.ask("SET", f"{self.door.prefix}:seq", value)
        else:
            self.queue._store._sequence = value  # type: ignore[attr-defined]


def routed(job: Claim, *tiers: str) -> Routed:
    return Routed(job.id, job.token, tiers, b'{"tiers":[]}')


def ids(claims: list[Claim]) -> list[str]:
    return [claim.id for claim in claims]


def done(job: Claim, state: str = "done", result: bytes = b'{"request_id":"a"}') -> Settlement:
    return Settlement(job.id, job.token, state, result)


async def until(get: Callable[[], Awaitable[object]]) -> object:
    """The first true answer of `get`."""
    while not (answer := await get()):
        await asyncio.sleep(0.002)
    return answer


async def open_bench(kind: str, url_of: Callable[[str], str]) -> AsyncIterator[Bench]:
    """The bench of one kind: redis6, redis7 or memory. Checks at its end that no key was left to live for ever."""
    if kind == "memory":

        async def same(limits: Limits) -> Queue:
            queue = MemoryQueue(limits)
            await queue.configure()
            return queue

        yield Bench(MemoryQueue(), None, same)
        return
    url, prefix, opened = url_of(kind), f"{{t{next(_prefixes)}}}", []

    async def new(limits: Limits) -> Queue:
        queue = RedisQueue(url, prefix, limits)
        await queue.open()
        await queue.configure()
        opened.append(queue)
        return queue

    door = RedisDoor(url, prefix, 5.0)
    yield Bench(await new(Limits()), door, new)
    await check_leaks(door, opened[0])
    for queue in opened:
        await queue.close()
    door.close()


async def check_leaks(door: RedisDoor, queue: Queue) -> None:
    """When all jobs have ended, every key but sequence and protocol has a time to live; the counters are empty."""
    for key in await door.ask("KEYS", f"{door.prefix}:job:*"):
        await queue.cancel(key.decode().removeprefix(f"{door.prefix}:job:"))
    immortal = {key for key in await door.ask("KEYS", f"{door.prefix}:*") if await door.ask("PTTL", key) < 0}
    assert immortal <= {f"{door.prefix}:{name}".encode() for name in ("seq", "protocol", "limits", "turns")}
