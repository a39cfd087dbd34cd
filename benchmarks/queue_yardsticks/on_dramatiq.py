"""Queue benchmark · dramatiq: one worker process with 8 threads; the producer blocks on each result."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version as version_of
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

THREADS = 8


def version() -> str:
    return f"dramatiq {version_of('dramatiq')} (8 threads)"


def _declare(url: str) -> tuple[Any, Any]:
    broker = RedisBroker(url=url)
    broker.add_middleware(Results(backend=RedisBackend(url=url)))
    dramatiq.set_broker(broker)
    noop = dramatiq.actor(actor_name="noop", store_results=True)(lambda: "ok")
    return broker, noop


def serve(url: str) -> None:
    broker, _ = _declare(url)
    dramatiq.Worker(broker, worker_threads=THREADS).start()
    signal.pause()


class Dramatiq:
    """Its producer is synchronous: nothing else runs in this process, so blocking the loop costs nothing."""

    def __init__(self, noop: Any) -> None:
        self._noop = noop

    async def one(self) -> None:
        assert self._noop.send().get_result(block=True, timeout=60_000) == "ok"

    async def many(self, count: int) -> None:
        for message in [self._noop.send() for _ in range(count)]:
            assert message.get_result(block=True, timeout=60_000) == "ok"


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Dramatiq]:
    _, noop = _declare(url)
    yield Dramatiq(noop)
