"""Faults benchmark · bench process · how true the predicted starts are: a saturated tier, jobs of many lengths.

Jobs come a little faster than they are served on the average, in bursts; each asks for its position right after its
submit, and some ask again while they wait. A prediction is kept when the job started before it ran out.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from dataclasses import dataclass

from benchmarks.faults.family import Family
from benchmarks.faults.history import now_ms
from benchmarks.faults.raw import PREFIX
from benchmarks.faults.resp import Redis
from benchmarks.report import Report, absolute
from metamusesd.client import Client
from metamusesd.job import TERMINAL

SECONDS, QUICK_SECONDS = 300.0, 15.0  # shorter runs scatter by several per cent
WARM_S = 15.0  # in which rates and factors are learnt
STEP_MS, SHORTEST, LONGEST = 10, 5, 95  # of a job, in words: half a second on the average
PLACES = 8
FIRST, LOAD = 80, 1.03  # jobs at the start; arrivals over what the places can serve
LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Guess:
    """What a job was told, and when."""

    id: str
    at_ms: float
    ahead: int
    p50_ms: int
    p90_ms: int


def run(args: argparse.Namespace) -> Report:
    """All rows."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> Report:
    report = Report(benchmark="faults", command=args.command)
    seconds = QUICK_SECONDS if args.quick else SECONDS
    seed = args.seed or 0
    family = Family()
    try:
        await family.start()
        async with family.client() as client:
            guesses, unknown = await _load(client, random.Random(seed), seconds)
            starts = await _starts(family, {guess.id for guess in guesses})
    finally:
        family.close()
    case = f"{len(guesses)} predictions, {PLACES} places, {LOAD:g} of their rate"
    kept = {name: _share(guesses, starts, name) for name in ("p50_ms", "p90_ms")}
    report.rows += [
        absolute("starts within the p90", case, "share", [kept["p90_ms"]], bar=">= 0.85"),
        absolute("starts within the p90, not too many", case, "share", [kept["p90_ms"]], bar="<= 0.95"),
        absolute("starts within the p50", case, "share", [kept["p50_ms"]]),
        absolute("real wait", case, "ms", [statistics.median(starts[guess.id] - guess.at_ms for guess in guesses)]),
        absolute("predicted p50", case, "ms", [statistics.median(guess.p50_ms for guess in guesses)]),
        absolute("predicted p90", case, "ms", [statistics.median(guess.p90_ms for guess in guesses)]),
        absolute("questions without a prediction", case, "count", [unknown]),
    ]
    return report


def _share(guesses: list[Guess], starts: dict[str, float], name: str) -> float:
    return sum(starts[guess.id] <= guess.at_ms + getattr(guess, name) for guess in guesses) / max(1, len(guesses))


async def _load(client: Client, dice: random.Random, seconds: float) -> tuple[list[Guess], int]:
    """Submit for so long, then let everything end. (predictions after the warm-up, questions without one)."""
    guesses: list[Guess] = []
    unknown, asks, ids = 0, set[asyncio.Task[int]](), []
    hz = LOAD * PLACES / ((SHORTEST + LONGEST) / 2 * STEP_MS / 1000)
    start_s = time.monotonic()
    ids += [await _submit(client, dice) for _ in range(FIRST)]
    while (passed_s := time.monotonic() - start_s) < seconds:
        await asyncio.sleep(dice.expovariate(hz))
        id = await _submit(client, dice)
        ids.append(id)
        if passed_s > WARM_S or seconds < 2 * WARM_S:
            asks.add(asyncio.create_task(_ask(client, id, guesses, dice.choice((0.0, 0.0, 0.5, 2.0)))))
    unknown = sum(await asyncio.gather(*asks))
    await asyncio.gather(*(client.wait(id, LIMIT_S) for id in ids))
    return guesses, unknown


async def _submit(client: Client, dice: random.Random) -> str:
    query = f"so long !tokens={dice.randint(SHORTEST, LONGEST)} !delay={STEP_MS}ms"
    request = {"user_query": query, "tier": "fast", "stream": False, "priority": dice.choice((1, 1, 1, 1, 2))}
    return (await client.submit(request)).id


async def _ask(client: Client, id: str, guesses: list[Guess], after_s: float) -> int:
    """Ask while it waits in its tier; 1 when there was no prediction."""
    await asyncio.sleep(after_s)
    for _ in range(100):
        at_ms = now_ms()
        position = await client.position(id)
        if position.state == "running" or position.state in TERMINAL:
            return 0
        if position.queue == "fast":
            if position.start_p50_ms is None or position.start_p90_ms is None:
                return 1
            guesses.append(Guess(id, at_ms, position.ahead, position.start_p50_ms, position.start_p90_ms))
            return 0
        await asyncio.sleep(0.02)
    return 1


async def _starts(family: Family, ids: set[str]) -> dict[str, float]:
    """When each was claimed for its first run, by Redis' clock, which is this host's."""
    redis = Redis(family.redis_socket)
    order = sorted(ids)
    claimed = await redis.ask_all([("HGET", f"{PREFIX}:job:{id}", "claimed") for id in order])
    redis.close()
    return {id: float(at) for id, at in zip(order, claimed, strict=True)}
