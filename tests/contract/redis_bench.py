"""Short words for tests of the real queue in trouble: open it, hold jobs, ask for the trouble, insist."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import pytest

from metamusesd.errors import QueueUnavailable
from metamusesd.queues.base import INGRESS, Claim, Limits, Routed, Submission, Want
from metamusesd.queues.redis_queue import RedisQueue

T = TypeVar("T")
NO_LIMITS = Limits()


@asynccontextmanager
async def opened(
    url: str, timeout_s: float = 5.0, prefix: str = "metamuse", limits: Limits = NO_LIMITS
) -> AsyncIterator[RedisQueue]:
    queue = RedisQueue(url, prefix, limits, timeout_s=timeout_s)
    await queue.open()
    try:
        yield queue
    finally:
        await queue.close()


def job(id: str, **fields: object) -> Submission:
    return Submission(id, b"{}", "d", 1, **fields)  # type: ignore[arg-type]


async def running(queue: RedisQueue, *ids: str) -> list[Claim]:
    """Jobs that this owner holds, from `fast`."""
    await queue.submit([job(id) for id in ids])
    taken = await queue.claim("h:1", "first", [Want(INGRESS, len(ids))], lease_ms=60_000)
    moves = [Routed(claim.id, claim.token, ("fast",), b"{}") for claim in taken]
    return await queue.claim("h:1", "second", [Want("fast", len(ids))], moves, lease_ms=60_000)


async def trouble_of(call: Awaitable[object]) -> str:
    """The trouble that the call ends with."""
    with pytest.raises(QueueUnavailable) as caught:
        await call
    return caught.value.trouble


async def insist(make: Callable[[], Awaitable[T]], seen: set[str] | None = None) -> T:
    """Repeat until it is answered; `seen` gathers the troubles on the way."""
    while True:
        try:
            return await make()
        except QueueUnavailable as error:
            if seen is not None:
                seen.add(error.trouble)
            await asyncio.sleep(0.02)
