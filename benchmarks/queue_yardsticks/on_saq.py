"""Queue benchmark · SAQ: one worker process; the producer listens on its pub/sub before it enqueues."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version as version_of
from typing import Any

from redis.asyncio import Redis
from saq import Job, Status, Worker
from saq.queue.redis import RedisQueue

from benchmarks.queue_yardsticks.drive import run

CONCURRENCY = 10  # its default; 100 gave no more here


def version() -> str:
    return f"SAQ {version_of('saq')} (pub/sub)"


async def noop(_: dict[str, Any]) -> str:
    return "ok"


def serve(url: str) -> None:
    async def work() -> None:
        await Worker(RedisQueue(Redis.from_url(url)), functions=[noop], concurrency=CONCURRENCY).start()

    run(work())


class Saq:
    def __init__(self, queue: Any) -> None:
        self._queue = queue

    async def one(self) -> None:
        job = Job("noop", key=uuid.uuid4().hex)
        heard = asyncio.ensure_future(self._queue.listen([job.key], self._ended, None))
        await asyncio.sleep(0)
        await self._queue.enqueue(job)
        await heard
        await job.refresh()
        assert job.result == "ok"

    async def many(self, count: int) -> None:
        jobs = [Job("noop", key=uuid.uuid4().hex) for _ in range(count)]
        left = {job.key for job in jobs}

        def ended(key: str, status: Status) -> bool:
            if self._ended(key, status):
                left.discard(key)
            return not left

        heard = asyncio.ensure_future(self._queue.listen(left.copy(), ended, None))
        await asyncio.sleep(0)
        await asyncio.gather(*(self._queue.enqueue(job) for job in jobs))
        await heard
        found = await self._queue.jobs([job.key for job in jobs])
        assert all(job.result == "ok" for job in found)

    @staticmethod
    def _ended(key: str, status: Status) -> bool:
        return status == Status.COMPLETE


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Saq]:
    queue = RedisQueue(Redis.from_url(url))
    await queue.connect()
    subscribed = asyncio.ensure_future(queue.listen(["keeps the subscription"], lambda *_: False, None))
    await asyncio.sleep(0.2)
    yield Saq(queue)
    subscribed.cancel()
    await queue.disconnect()
