"""Stages 1 and 9 · command line · how a command becomes a producer of the configured queue."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

from metamusesd.client import Client
from metamusesd.commands import health
from metamusesd.config import EMBEDDED, Config


def produce(config: Config, work: Callable[[Client], Awaitable[int]]) -> int:
    """Work as a producer and return the exit code. An embedded Redis lives with its daemon: DaemonAway at once."""
    if config.redis.url == EMBEDDED:
        health.require(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a terminated submit cancels its job as well
    return asyncio.run(_with_client(config, work))


async def _with_client(config: Config, work: Callable[[Client], Awaitable[int]]) -> int:
    async with Client.from_config(config) as client:
        return await work(client)
