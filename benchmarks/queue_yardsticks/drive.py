"""Queue benchmark · one process of one system · serve no-op jobs, or submit them and take the time.

    python -m benchmarks.queue_yardsticks.drive SYSTEM serve URL
    python -m benchmarks.queue_yardsticks.drive SYSTEM measure URL LATENCY_JOBS THROUGHPUT_JOBS     prints one JSON line

SYSTEM is a module beside this one. It has `version()`, `serve(url)`, which works until it is killed, and
`connect(url)`, an async context manager of a System. Standard library only (uvloop where there is one), so that
yardsticks whose requirements quarrel with ours run on an interpreter of their own.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

FIRST_TIMEOUT_S = 60.0
WARM_JOBS = 200


class System(Protocol):
    """What is measured: both return when the producer has the results in its hands."""

    async def one(self) -> None: ...

    async def many(self, count: int) -> None: ...


def run(work: Coroutine[Any, Any, Any]) -> None:
    """Run on the fastest event loop there is."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


async def at_most(limit: int, count: int, call: Callable[[], Awaitable[Any]]) -> list[Any]:
    """The results of `count` calls, `limit` at a time: a library that opens a connection a call drowns otherwise."""
    turns = asyncio.Semaphore(limit)

    async def take_turn() -> Any:
        async with turns:
            return await call()

    return await asyncio.gather(*(take_turn() for _ in range(count)))


async def measure(module: Any, url: str, latency_jobs: int, throughput_jobs: int) -> None:
    async with module.connect(url) as system:
        await asyncio.wait_for(system.one(), FIRST_TIMEOUT_S)
        for _ in range(WARM_JOBS):
            await system.one()
        latencies = sorted([await _time_one(system) for _ in range(latency_jobs)])
        await system.many(WARM_JOBS)
        started_s = time.perf_counter()
        await system.many(throughput_jobs)
        seconds = time.perf_counter() - started_s
    figures = {
        "version": module.version(),
        "p50_ms": latencies[len(latencies) // 2],
        "p99_ms": latencies[len(latencies) * 99 // 100],
        "jobs_per_s": throughput_jobs / seconds,
    }
    print(json.dumps(figures), flush=True)


async def _time_one(system: System) -> float:
    started_s = time.perf_counter()
    await system.one()
    return (time.perf_counter() - started_s) * 1000


def main(name: str, role: str, url: str, *counts: str) -> None:
    module = importlib.import_module(f"benchmarks.queue_yardsticks.{name}")
    if role == "serve":
        module.serve(url)
    else:
        run(measure(module, url, *map(int, counts)))


if __name__ == "__main__":
    main(*sys.argv[1:])
