"""Queue benchmark · arq: one worker; worker and producer poll every 10 ms (default: 500)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version as version_of
from typing import Any
from urllib.parse import urlsplit

from arq import create_pool
from arq.connections import RedisSettings
from arq.jobs import ResultNotFound
from arq.worker import Worker

from benchmarks.queue_yardsticks.drive import at_most, run

POLL_S = 0.01
ENQUEUES_AT_ONCE = 50


def version() -> str:
    return f"arq {version_of('arq')} (10 ms polls)"


def _settings(url: str) -> RedisSettings:
    return RedisSettings(unix_socket_path=urlsplit(url).path)


async def noop(_: dict[str, Any]) -> str:
    return "ok"


def serve(url: str) -> None:
    async def work() -> None:
        settings = _settings(url)
        worker = Worker(
            [noop], redis_settings=settings, poll_delay=POLL_S, max_jobs=100, handle_signals=False, log_results=False
        )
        await worker.main()

    run(work())


class Arq:
    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def one(self) -> None:
        await self._result(await self._pool.enqueue_job("noop"))

    async def many(self, count: int) -> None:
        for job in await at_most(ENQUEUES_AT_ONCE, count, lambda: self._pool.enqueue_job("noop")):
            await self._result(job)

    @staticmethod
    async def _result(job: Any) -> None:
        while True:
            try:
                assert await job.result(timeout=60, poll_delay=POLL_S) == "ok"
                return
            except ResultNotFound:  # it looks for the result, then for the job, and both move in between: look again
                continue


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Arq]:
    pool = await create_pool(_settings(url))
    yield Arq(pool)
    await pool.aclose()
