"""Faults benchmark · bench process · what one claim and one settle cost while 10 … 1 000 000 jobs wait.

Two queues on one private Redis server: one holds 10 jobs, the other as many as its step says. Rounds take turns
between them, so that the ratio does not drift with the machine. What is claimed is settled, and as many new jobs are
routed behind it, uncounted. Server side: INFO commandstats; client side: the calls of our own queue, one at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.picture import draw
from benchmarks.faults.resp import Redis
from benchmarks.queue import redis_server
from benchmarks.report import Report, Row, absolute, compare
from metamusesd.job import Result, encode_result
from metamusesd.queues.base import INGRESS, Limits, Routed, Settlement, Submission, Want
from metamusesd.queues.redis_queue import RedisQueue

DEPTHS, QUICK_DEPTHS = (10, 100, 1_000, 10_000, 100_000, 1_000_000), (10, 1_000)
SHALLOW = 10
JOBS, QUICK_JOBS = 1_000, 100  # claimed a round
CHUNK = 5  # claimed and settled, then replaced
BATCH = 1_000
LEASE_MS = 600_000
BODY = b'{"user_query":"ok"}'
CURVES = ("client", "client, 10 queued", "server", "server, 10 queued")  # the second and the fourth: in the same rounds
PICTURE = Path("docs/claim-cost.svg")
LIMITS = Limits(max_jobs=2_000_000, max_tenant_jobs=2_000_000, max_bytes=1 << 32, result_ttl_s=1)


@dataclass(slots=True)
class Cost:
    """Microseconds a job, claim and settle together."""

    server_us: float
    client_us: float


class Deep:
    """One queue that is kept at its depth."""

    def __init__(self, url: str, prefix: str, redis: Redis) -> None:
        self._queue = RedisQueue(url, prefix, LIMITS)
        self._redis, self._prefix = redis, prefix
        self._numbers = itertools.count()
        self._calls = itertools.count()
        self.depth = 0

    async def open(self) -> None:
        await self._queue.open()
        await self._queue.configure()

    async def close(self) -> None:
        await self._queue.close()

    async def fill(self, depth: int) -> None:
        """Until so many wait in ready:fast."""
        while self.depth < depth:
            count = min(BATCH, depth - self.depth)
            ids = [f"{next(self._numbers):012}" for _ in range(count)]
            await self._queue.submit([Submission(id, BODY, id, 1, stream=False) for id in ids])
            claims = await self._queue.claim("b:1", self._nonce(), [Want(INGRESS, count)], lease_ms=LEASE_MS)
            routed = [Routed(claim.id, claim.token, ("fast",), b"{}") for claim in claims]
            await self._queue.claim("b:1", self._nonce(), [Want("fast", 0)], routed, lease_ms=LEASE_MS)
            self.depth += len(claims)

    async def round(self, jobs: int) -> Cost:
        """Claim and settle so many, one in a call."""
        depth, server_us, client_s = self.depth, 0.0, 0.0
        for _ in range(jobs // CHUNK):
            before, start_s = await self._server_us(), time.perf_counter()
            for _ in range(CHUNK):
                claims = await self._queue.claim("b:1", self._nonce(), [Want("fast", 1)], lease_ms=LEASE_MS)
                await self._queue.settle([Settlement(one.id, one.token, "done", _result(one.id)) for one in claims])
                self.depth -= len(claims)
            client_s += time.perf_counter() - start_s
            server_us += await self._server_us() - before
            await self.fill(depth)
        return Cost(server_us / jobs, client_s * 1e6 / jobs)

    async def _server_us(self) -> float:
        """Time that the server has spent in scripts so far."""
        text = (await self._redis.ask("INFO", "commandstats")).decode()
        found = [line for line in text.splitlines() if line.startswith("cmdstat_evalsha:")]
        return float(found[0].split("usec=")[1].split(",")[0]) if found else 0.0

    def _nonce(self) -> str:
        return f"n{next(self._calls)}"


def run(args: argparse.Namespace) -> Report:
    """All rows, and the picture."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> Report:
    report = Report(benchmark="faults", command=args.command)
    depths, jobs = (QUICK_DEPTHS, QUICK_JOBS) if args.quick else (DEPTHS, JOBS)
    rounds = args.rounds or (1 if args.quick else 5)
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in CURVES}
    with tempfile.TemporaryDirectory(prefix="mmc-") as folder, redis_server(Path(folder)) as url:
        redis = Redis(Path(folder) / "redis.sock", timeout_s=60.0)
        deep, shallow = Deep(url, "deep", redis), Deep(url, "shallow", redis)
        await deep.open()
        await shallow.open()
        await shallow.fill(SHALLOW)
        await shallow.round(jobs)  # warm
        empty = await _memory(redis)
        for depth in depths:
            await deep.fill(depth)
            pairs = [await _pair(deep, shallow, jobs, number) for number in range(rounds)]
            report.rows += _rows(depth, jobs, pairs, last=depth == depths[-1])
            server, client = report.rows[-2:]
            figures = (client.ours, client.yardstick, server.ours, server.yardstick)
            for name, figure in zip(CURVES, figures, strict=True):
                curves[name].append((depth, figure or 0.0))
            print(f"{depth:>9,} queued: {report.rows[-2].ours} µs on the server", flush=True)
        grown = (await _memory(redis) - empty) / depths[-1]
        report.rows.append(
            absolute("Redis memory a queued job", f"{depths[-1]} jobs, {len(BODY)}-byte bodies", "bytes", [grown])
        )
        await deep.close()
        await shallow.close()
        redis.close()
    report.notes.append(
        "claim one, settle it, one call each; server: time inside the scripts, client: until the replies"
    )
    if not args.quick:
        machine = f"{report.machine.cpu}, {report.machine.cores} cores, Python {report.machine.python}"
        draw(PICTURE, "Claim and settle, by length of the queue", machine, "jobs waiting", "µs a job", curves)
    return report


async def _pair(deep: Deep, shallow: Deep, jobs: int, number: int) -> tuple[Cost, Cost]:
    """One round of both, in turned order."""
    if number % 2:
        other = await shallow.round(jobs)
        return await deep.round(jobs), other
    mine = await deep.round(jobs)
    return mine, await shallow.round(jobs)


def _rows(depth: int, jobs: int, pairs: list[tuple[Cost, Cost]], *, last: bool) -> list[Row]:
    case, against = f"{depth} queued, {jobs} a round", f"{SHALLOW} queued"
    bar = "<= 1.5" if last else None
    return [
        compare("claim and settle, server", case, "µs", [(a.server_us, b.server_us) for a, b in pairs],
                against=against, bar=bar),
        compare("claim and settle, client", case, "µs", [(a.client_us, b.client_us) for a, b in pairs],
                against=against, bar=bar),
    ]  # fmt: skip


async def _memory(redis: Redis) -> float:
    text = (await redis.ask("INFO", "memory")).decode()
    return float(next(line for line in text.splitlines() if line.startswith("used_memory:")).split(":")[1])


def _result(id: str) -> bytes:
    return encode_result(Result(request_id=id, content="ok"))
