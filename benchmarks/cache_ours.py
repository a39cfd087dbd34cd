"""Cache benchmark · bench process · the daemon with an echo worker and its real caches, and what a producer sees of it.

One job at a time, submit to result, through the asyncio client over the embedded Redis' UNIX socket. Every job has a
user of its own, so that none is "the same user asks again", and every text that must be embedded is asked once: the
vectors process remembers the vectors of texts.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import uvloop

from benchmarks.cache_questions import Pair, misses, percentile
from benchmarks.cache_seed import Layout, identity_of_echo
from benchmarks.queue import child
from metamusesd import config
from metamusesd.cache.partition import question_of
from metamusesd.client import Client
from metamusesd.commands import vectors
from metamusesd.errors import MetamusesdError
from metamusesd.job import CachePolicy, InferenceRequest, Result
from metamusesd.wire import Count

CONFIG = """
[daemon]
state_dir = "{state}"
models_dir = "{models}"
drain_s = 0.5

[log]
level = "warning"

[cache]
max_entries = 1000000

[models.echo]
engine = "echo"
options = {options}

[tiers.fast]
model = "echo"
workers = 1
slots = 64
"""
START_TIMEOUT_S, ASK_TIMEOUT_S = 60.0, 30.0
NO_CACHE = CachePolicy(read=False, write=False)
EXACT_TENANT = "exact"
WARM_JOBS = 50
_SERIES = re.compile(r"^metamuse\w*cache_lookup_seconds_(sum|count)\{([^}]*)\} (\S+)$", re.MULTILINE)

Figures = dict[str, float]


def configured(state: Path, options: str = "{}") -> Path:
    """A configuration file for a daemon that lives in `state`."""
    state.mkdir(parents=True, exist_ok=True)
    path = state / "bench.toml"
    path.write_text(CONFIG.format(state=state, models=config.load(None).models_dir, options=options))
    return path


@asynccontextmanager
async def daemon(path: Path) -> AsyncIterator[Client]:
    """Run it until the block ends; yields a client. Both caches work then."""
    loaded, log = config.load(path, environ={}), path.parent / "log"
    with child([sys.executable, "-m", "metamusesd", "run", "--config", str(path)], log) as process:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await _until_ready(process, loaded)
        except (TimeoutError, RuntimeError):
            raise RuntimeError(f"the daemon did not become ready: {log.read_text(errors='replace')[-3000:]}") from None
        async with Client.from_env(path, environ={}) as client:
            served = [service.identity for host in await client.hosts() for service in host.tiers.values()]
            if served != [identity_of_echo(loaded)]:
                raise RuntimeError(f"the daemon's model is {served}, and the store was filled for another one")
            yield client


async def _until_ready(process: subprocess.Popen[bytes], loaded: config.Config) -> None:
    while process.poll() is None:
        with suppress(OSError, MetamusesdError):
            if b" 200 " in (await _get(loaded, "/readyz")).split(b"\r\n", 1)[0]:
                vectors.ask(loaded, Count(1))
                return
        await asyncio.sleep(0.05)
    raise RuntimeError("it ended")


async def _get(loaded: config.Config, page: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(loaded.health_socket))
    writer.write(f"GET {page} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n".encode())
    try:
        return await reader.read()
    finally:
        writer.close()


@dataclass(slots=True)
class Producer:
    """Asks, and notes how long each took and what the caches said."""

    client: Client
    layout: Layout
    users: Iterator[int] = field(default_factory=count)

    async def ask(self, text: str, tenant: str, policy: CachePolicy | None = None) -> tuple[float, Result]:
        """(milliseconds, result) of one job of somebody new."""
        request = InferenceRequest(
            user_query=text, tenant=tenant, tier="fast", user_address=f"user-{next(self.users)}",
            cache=policy or CachePolicy(),
        )  # fmt: skip
        began_s = time.perf_counter()
        result = await self.client.execute(request, ASK_TIMEOUT_S)
        return (time.perf_counter() - began_s) * 1000, result

    async def semantic(self, pairs: Sequence[Pair], first: int) -> list[tuple[float, Result, str]]:
        """Ask the other wording of each; with the answer that is right. `first`: the first one's place in the store."""
        asked = []
        for place, pair in enumerate(pairs, first):
            took_ms, result = await self.ask(pair.asked, self.layout.tenant(place))
            asked.append((took_ms, result, pair.stored))
        return asked


def run(path: Path, layout: Layout, short: list[Pair], long: list[Pair], jobs: int, label: str) -> Figures:
    """One round, on a loop of its own."""
    return uvloop.run(measure(path, layout, short, long, jobs, label))


async def measure(path: Path, layout: Layout, short: list[Pair], long: list[Pair], jobs: int, label: str) -> Figures:
    """Start the daemon on a store that is full, and take everything of one round."""
    loaded = config.load(path, environ={})
    async with daemon(path) as client:
        producer = Producer(client, layout)
        await _warm(producer, f"warm{label}")
        figures = _of_hits("short", await producer.semantic(short, 0))
        figures |= _of_hits("long", await producer.semantic(long, len(short)))
        figures |= await _exact(producer, loaded, jobs)
        return figures | await _misses(producer, loaded, jobs // 4, label)


async def _warm(producer: Producer, label: str) -> None:
    """Until the dispatcher is linked with the vectors process, and everything has run once."""
    texts = misses(label)
    for _ in range(WARM_JOBS):
        await producer.ask(next(texts), "warm")
    text = next(texts)
    kinds = [_kind((await producer.ask(text, "warm"))[1]) for _ in range(3)]
    if kinds[-1] != "exact":
        raise RuntimeError(f"the caches do not work: {kinds}")


async def _exact(producer: Producer, loaded: config.Config, jobs: int) -> Figures:
    """Equal questions of others; and nothing but the lookup, client to Redis and back."""
    texts = [text for text, _ in zip(misses("exact"), range(jobs // 5), strict=False)]
    for text in texts:
        await producer.ask(text, EXACT_TENANT)
    asked = [(*await producer.ask(texts[n % len(texts)], EXACT_TENANT), texts[n % len(texts)]) for n in range(jobs)]
    figures, whose, alone_ms = _of_hits("exact", asked, kind="exact"), identity_of_echo(loaded), []
    for n in range(jobs):
        request = InferenceRequest(user_query=texts[n % len(texts)], tenant=EXACT_TENANT, tier="fast")
        key = question_of(request).key(whose)
        began_s = time.perf_counter()
        recalled = await producer.client.recall([key])
        alone_ms.append((time.perf_counter() - began_s) * 1000)
        assert recalled.key
    return figures | {"recall_p50": percentile(alone_ms, 0.5), "recall_p99": percentile(alone_ms, 0.99)}


async def _misses(producer: Producer, loaded: config.Config, jobs: int, label: str) -> Figures:
    """Jobs that nothing answers, by turns with the cache and without it."""
    texts, tenant = misses(label), producer.layout.tenant(0)
    on_ms, off_ms, hits = [], [], 0
    before = await _looked_up(loaded)
    for _ in range(jobs):
        took_ms, result = await producer.ask(next(texts), tenant)
        on_ms.append(took_ms)
        hits += result.from_cache
        off_ms.append((await producer.ask(next(texts), tenant, NO_CACHE))[0])
    seconds, lookups = (after - first for after, first in zip(await _looked_up(loaded), before, strict=True))
    on, off = percentile(on_ms, 0.5), percentile(off_ms, 0.5)
    figures = {"miss_p50": on, "off_p50": off, "miss_extra": on - off, "miss_hits": float(hits)}
    return figures | {"miss_stage": seconds / max(1.0, lookups) * 1000}


async def _looked_up(loaded: config.Config) -> tuple[float, float]:
    """(seconds, lookups) so far that ended as misses of the semantic cache, by the daemon's own metrics."""
    totals = {"sum": 0.0, "count": 0.0}
    for which, labels, value in _SERIES.findall((await _get(loaded, "/metrics")).decode()):
        if "semantic" in labels and "hit" not in labels:
            totals[which] += float(value)
    return totals["sum"], totals["count"]


def _of_hits(name: str, asked: list[tuple[float, Result, str]], kind: str = "semantic") -> Figures:
    """Latencies of all that was asked, whatever came of it; how many hit, and how many were wrong."""
    took_ms = [each for each, _, _ in asked]
    hits = [(result, right) for _, result, right in asked if _kind(result) == kind]
    stage_ms = [result.timings.total_ms - result.timings.queue_ms for result, _ in hits]
    return {
        f"{name}_p50": percentile(took_ms, 0.5),
        f"{name}_p99": percentile(took_ms, 0.99),
        f"{name}_stage": percentile(stage_ms, 0.5) if stage_ms else float("nan"),
        f"{name}_share": len(hits) / len(asked),
        f"{name}_wrong": float(sum(result.from_cache and result.content != right for _, result, right in asked)),
    }


def _kind(result: Result) -> str:
    return result.cache.kind if result.cache is not None else ""
