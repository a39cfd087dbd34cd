"""Queue benchmark · taskiq: stream broker, one receiver; the producer polls for results every 2 ms (default: 200)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version as version_of
from typing import Any

from taskiq.api import run_receiver_task
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.queue_yardsticks.drive import at_most, run

POLL_S = 0.002
ENQUEUES_AT_ONCE = 50


def version() -> str:
    return f"taskiq-redis {version_of('taskiq-redis')} (stream, 2 ms poll)"


def _broker(url: str) -> tuple[Any, Any]:
    broker = RedisStreamBroker(url).with_result_backend(RedisAsyncResultBackend(url, result_ex_time=600))

    @broker.task(task_name="noop")
    async def noop() -> str:
        return "ok"

    return broker, noop


def serve(url: str) -> None:
    async def work() -> None:
        broker, _ = _broker(url)
        broker.is_worker_process = True
        await run_receiver_task(broker, run_startup=True, max_async_tasks=100)

    run(work())


class Taskiq:
    def __init__(self, noop: Any) -> None:
        self._noop = noop

    async def one(self) -> None:
        await _result(await self._noop.kiq())

    async def many(self, count: int) -> None:
        for task in await at_most(ENQUEUES_AT_ONCE, count, self._noop.kiq):
            await _result(task)


async def _result(task: Any) -> None:
    result = await task.wait_result(check_interval=POLL_S, timeout=60)
    assert result.return_value == "ok"


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Taskiq]:
    broker, noop = _broker(url)
    await broker.startup()
    yield Taskiq(noop)
    await broker.shutdown()
