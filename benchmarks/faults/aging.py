"""Faults benchmark · bench process · what a permanent flood of aged low jobs costs the critical ones, and its share.

Three loads on one tier, always more than it can serve: low jobs that never age, low jobs that have all aged, and aged
low ones beside normal ones. A critical job comes now and then and is timed from submit to its first token.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time

from benchmarks.faults.family import CONFIG, Family
from benchmarks.faults.raw import PREFIX
from benchmarks.faults.resp import Redis
from benchmarks.report import Report, absolute
from metamusesd.client import Client

SECONDS, QUICK_SECONDS = 40.0, 6.0
BACKLOG = 100  # jobs of a class that always wait
GAP_S = (0.05, 0.15)  # between critical jobs
FLOOD = "drip !tokens=20 !delay=5ms"
AGED_AFTER_S = 0.2
AGES = "\n[classes.low]\nmax_wait_s = {ages}\n"
LOADS = (  # case, low jobs age after (0: never), classes of the flood
    ("low jobs that never age", 0.0, (0,)),
    ("aged low jobs", AGED_AFTER_S, (0,)),
    ("aged low jobs beside normal ones", AGED_AFTER_S, (0, 1)),
)


def run(args: argparse.Namespace) -> Report:
    """All rows."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> Report:
    report = Report(benchmark="faults", command=args.command)
    seconds = QUICK_SECONDS if args.quick else SECONDS
    for case, ages, classes in LOADS:
        waits, share = await _measure(seconds, ages, classes)
        case = f"{case}, {len(waits)} critical"
        report.rows.append(absolute("critical: submit to first token, p50", case, "ms", waits))
        report.rows.append(
            absolute("critical: submit to first token, p99", case, "ms", [waits[int(len(waits) * 0.99)]])
        )
        if len(classes) > 1:
            report.rows.append(absolute("starts of aged jobs", case, "share", [share], bar="<= 0.13"))
    report.notes.append(f"aged after {AGED_AFTER_S} s; {BACKLOG} jobs of each class of the flood always wait")
    return report


async def _measure(seconds: float, ages: float, classes: tuple[int, ...]) -> tuple[list[float], float]:
    """(sorted waits of critical jobs in ms, share of low jobs among all starts)."""
    family = Family(config=CONFIG + AGES, ages=ages)
    try:
        await family.start()
        async with family.client() as client:
            stop = asyncio.Event()
            started: dict[int, int] = dict.fromkeys(classes, 0)
            floods = [
                asyncio.create_task(_drip(client, priority, stop, started))
                for priority in classes
                for _ in range(BACKLOG)
            ]
            await asyncio.sleep(max(2.0, 4 * ages))
            started.update(dict.fromkeys(classes, 0))
            waits = await _critical(client, family, seconds)
            share = started[0] / (sum(started.values()) + len(waits))
            stop.set()
            for flood in floods:
                flood.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
            return sorted(waits), share
    finally:
        family.close()


async def _drip(client: Client, priority: int, stop: asyncio.Event, started: dict[int, int]) -> None:
    """One job of the backlog after the other."""
    while not stop.is_set():
        request = {"user_query": FLOOD, "tier": "fast", "priority": priority, "stream": False}
        await client.wait((await client.submit(request)).id, 300.0)
        started[priority] += 1


async def _critical(client: Client, family: Family, seconds: float) -> list[float]:
    dice, ids = random.Random(0), []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        request = {"user_query": "now !tokens=2", "tier": "fast", "priority": "critical"}
        ids.append((await client.submit(request)).id)
        await asyncio.sleep(dice.uniform(*GAP_S))
    await asyncio.gather(*(client.wait(id, 60.0) for id in ids))
    redis = Redis(family.redis_socket)
    submits = await redis.ask_all([("HGET", f"{PREFIX}:job:{id}", "submitted") for id in ids])
    streams = await redis.ask_all([("XRANGE", f"{PREFIX}:events:{id}", "-", "+") for id in ids])
    redis.close()
    return [_first_token_ms(events) - float(at) for at, events in zip(submits, streams, strict=True)]


def _first_token_ms(events: list[tuple[bytes, list[bytes]]]) -> float:
    return next(float(at.split(b"-")[0]) for at, words in events if words[1] == b"token")
