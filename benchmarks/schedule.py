"""Schedule benchmark · bench process · do predicted starts hold, and do aged low jobs leave critical ones their speed?

A daemon on echo workers whose runs take log-normal times. `predictions`: Poisson arrivals of four classes about as fast
as the tier can serve; a share of them asks where it stands as soon as it waits, and that is held against its `started`
event. `aged flood`: low jobs wait without end, all of them aged; critical jobs come one at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import time
from contextlib import aclosing
from dataclasses import dataclass

from benchmarks.faults.family import Family
from benchmarks.report import Report, Row, absolute
from metamusesd.client import Client
from metamusesd.job import InferenceRequest, Priority

CONFIG = """
[daemon]
state_dir = "{folder}/s"
[redis]
appendfsync = "{appendfsync}"
[models.echo]
engine = "echo"
[tiers.fast]
model = "echo"
workers = 2
cores = 1
slots = 4
reserve_slots = 4
[classes.low]
max_wait_s = {max_wait_s}
"""
PLACES = 8
STEP_MS = 10
MEAN_TOKENS, SPREAD = 50, 0.8  # of a run; sigma of the logarithm
RUN_MS = MEAN_TOKENS * STEP_MS
MIX = (0.3, 0.4, 0.2, 0.1)  # low to critical
LOAD, SWING, PERIOD_S = 0.95, 0.3, 40.0
PREDICT_S, QUICK_PREDICT_S = 120.0, 12.0
WARM_S = 20.0  # nothing is measured before
FLOOD_S, QUICK_FLOOD_S = 30.0, 4.0
FLOOD_JOBS = 64  # low jobs that wait at any time
CRITICAL_PAUSE_S = 0.2


def run(args: argparse.Namespace) -> Report:
    """Both cases."""
    report = Report(benchmark="schedule", command=args.command)
    cases = {"predictions": _predictions, "aged flood": _flood}
    for name in args.case or cases:
        report.rows += asyncio.run(cases[name](args.quick, args.seed or 1))
    report.notes.append(f"echo engine: {PLACES} places in 2 workers, runs of {RUN_MS} ms in the mean")
    return report


@dataclass(slots=True)
class _Sample:
    """One job that was told when it may start; all in milliseconds since the epoch."""

    priority: int
    asked_ms: float
    p50_ms: int
    p90_ms: int
    started_ms: float = 0.0


async def _predictions(quick: bool, seed: int) -> list[Row]:
    family = Family("no", CONFIG, max_wait_s=30)
    try:
        await family.start()
        async with Client.from_env(family.config, {}) as client:
            samples = await _arrivals(client, random.Random(seed), QUICK_PREDICT_S if quick else PREDICT_S)
    finally:
        family.close()
    rows = []
    for name, chosen in [("all classes", samples), *_by_class(samples)]:
        if chosen:
            in_p50 = 100 * sum(each.started_ms <= each.asked_ms + each.p50_ms for each in chosen) / len(chosen)
            in_p90 = 100 * sum(each.started_ms <= each.asked_ms + each.p90_ms for each in chosen) / len(chosen)
            case, bar = f"{name}, {len(chosen)} jobs", ">= 85" if name == "all classes" else None
            rows.append(absolute("started within the predicted p50", case, "%", [in_p50]))
            rows.append(absolute("started within the predicted p90", case, "%", [in_p90], bar=bar))
    return rows


def _by_class(samples: list[_Sample]) -> list[tuple[str, list[_Sample]]]:
    return [(each.name.lower(), [sample for sample in samples if sample.priority == each]) for each in Priority]


async def _arrivals(client: Client, rng: random.Random, last_s: float) -> list[_Sample]:
    begin_s, tasks = time.monotonic(), list[asyncio.Task[_Sample | None]]()
    rate = LOAD * PLACES / (RUN_MS / 1000)
    async with asyncio.TaskGroup() as group:
        while (at_s := time.monotonic() - begin_s) < last_s:
            swing = 1 + SWING * math.sin(2 * math.pi * at_s / PERIOD_S)
            await asyncio.sleep(rng.expovariate(rate * swing))
            priority = rng.choices(range(4), MIX)[0]
            receipt = await client.submit(_request(rng, priority))
            task = group.create_task(_sample(client, receipt.id, priority))
            if at_s > min(WARM_S, last_s / 2):
                tasks.append(task)
    return [sample for task in tasks if (sample := task.result()) is not None]


async def _sample(client: Client, id: str, priority: int) -> _Sample | None:
    """None: it never waited, or nobody could tell for how long."""
    told = asyncio.create_task(_event_ms(client, id, "started"))
    while not told.done():
        position = await client.position(id)
        asked_ms = time.time() * 1000
        if position.queue not in ("", "ingress"):
            break
        await asyncio.sleep(0.002)
    started_ms = await told
    if position.start_p50_ms is None or position.start_p90_ms is None or asked_ms > started_ms:
        return None
    return _Sample(priority, asked_ms, position.start_p50_ms, position.start_p90_ms, started_ms)


async def _event_ms(client: Client, id: str, kind: str) -> float:
    """Redis' time of the first event of this kind."""
    async with aclosing(client.stream(id)) as events:
        async for event in events:
            if event.kind == kind:
                return float(event.cursor.partition("-")[0])
    return 0.0


async def _flood(quick: bool, seed: int) -> list[Row]:
    """Critical jobs on a daemon that has nothing else to do, then beside the flood."""
    rng, last_s = random.Random(seed), QUICK_FLOOD_S if quick else FLOOD_S
    rows = []
    for name, jobs in (("idle", 0), (f"{FLOOD_JOBS} aged low jobs wait at any time", FLOOD_JOBS)):
        family = Family("no", CONFIG, max_wait_s=0.05)
        try:
            await family.start()
            async with Client.from_env(family.config, {}) as client:
                flood = asyncio.create_task(_keep_waiting(client, rng, jobs))
                await asyncio.sleep(1.0)
                times_ms = [await _critical_ms(client) for _ in range(round(last_s / CRITICAL_PAUSE_S))]
                flood.cancel()
        finally:
            family.close()
        rows.append(absolute("critical job, submit to first token, p50", name, "ms", [_quantile(times_ms, 0.5)]))
        bar = f"<= {RUN_MS}" if jobs else None
        rows.append(
            absolute("critical job, submit to first token, p99", name, "ms", [_quantile(times_ms, 0.99)], bar=bar)
        )
    return rows


async def _keep_waiting(client: Client, rng: random.Random, jobs: int) -> None:
    """So many low jobs more than there are places, always."""

    async def one_after_another() -> None:
        while True:
            await client.wait((await client.submit(_request(rng, Priority.LOW))).id)

    async with asyncio.TaskGroup() as group:
        for _ in range(jobs and jobs + PLACES):
            group.create_task(one_after_another())


async def _critical_ms(client: Client) -> float:
    await asyncio.sleep(CRITICAL_PAUSE_S)
    begin_ms = time.time() * 1000
    request = InferenceRequest(user_query=f"quick !tokens=3 !delay={STEP_MS}ms", priority="critical")
    return await _event_ms(client, (await client.submit(request)).id, "token") - begin_ms


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, round(share * len(values)))]


def _request(rng: random.Random, priority: int) -> InferenceRequest:
    tokens = max(1, round(rng.lognormvariate(math.log(MEAN_TOKENS) - SPREAD**2 / 2, SPREAD)))
    return InferenceRequest(user_query=f"a b c !tokens={tokens} !delay={STEP_MS}ms", priority=Priority(priority).name)
