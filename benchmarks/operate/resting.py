"""Operate benchmark · bench process · idle and memory: what the daemon costs while nobody asks, and after some work.

Processor time is counted by the scheduler in nanoseconds, and is the daemon's own: other load hardly changes it.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from benchmarks.faults.family import Family
from benchmarks.operate.homes import family, model_of, said_load
from benchmarks.operate.watch import cpu_s, names, size_mb, wakeups
from benchmarks.report import Report, absolute

QUIET_S = 14.0  # after the start: from then on it does its rounds more seldom (dispatcher/rounds.py)
IDLE_S, QUICK_IDLE_S = 30.0, 5.0
ROUNDS = 3
JOBS, QUICK_JOBS, AT_ONCE = 400, 40, 8
BARS = {"supervisor": "<= 30", "dispatcher": "<= 150"}


def run(args: argparse.Namespace) -> Report:
    """All rows of both cases, or of the one that is asked for."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> Report:
    report = Report(benchmark="operate", command=args.command)
    cases, home = set(args.case or ("memory", "idle")), family(model_of(args))
    try:
        await home.start()
        if "idle" in cases:
            await asyncio.sleep(QUIET_S)
            await _idle(report, home, args)
        if "memory" in cases:
            await _memory(report, home, QUICK_JOBS if args.quick else JOBS)
        await home.stop()
    finally:
        home.close()
    report.notes.append(f"idle and memory: the whole daemon with vectors and Redis; {said_load()}")
    return report


async def _idle(report: Report, home: Family, args: argparse.Namespace) -> None:
    seconds, rounds = (QUICK_IDLE_S, 1) if args.quick else (IDLE_S, args.rounds or ROUNDS)
    case = f"over {seconds:g} s"
    pids = await _pids(home)
    shares: list[dict[str, float]] = []
    turns: list[dict[str, float]] = []
    for _ in range(rounds):
        begun_s, used = time.perf_counter(), {name: (cpu_s(pid), wakeups(pid)) for name, pid in pids.items()}
        await asyncio.sleep(seconds)
        took_s = time.perf_counter() - begun_s
        shares.append({name: 100 * (cpu_s(pid) - used[name][0]) / took_s for name, pid in pids.items()})
        turns.append({name: (wakeups(pid) - used[name][1]) / took_s for name, pid in pids.items()})
    for name in pids:
        report.rows.append(absolute(f"idle: {name}", case, "% of a core", [each[name] for each in shares]))
        report.rows.append(absolute(f"wake-ups: {name}", case, "a second", [each[name] for each in turns]))
    total = [sum(each.values()) for each in shares]
    report.rows.append(absolute("idle: all together", case, "% of a core", total, bar="<= 0.5"))


async def _memory(report: Report, home: Family, jobs: int) -> None:
    """After so many short jobs, of which every fourth is streamed."""
    case, places = f"after {jobs} jobs", asyncio.Semaphore(AT_ONCE)
    async with home.client() as client:

        async def work(number: int) -> None:
            async with places:
                tier = ("fast", "medium")[number % 2]
                body = {"user_query": f"Say {number}.", "tier": tier, "params": {"max_tokens": 3}}
                id = (await client.submit(body)).id
                if number % 4 == 0:
                    async for _ in client.stream(id):
                        pass
                await client.wait(id, 120.0)

        await asyncio.gather(*(work(number) for number in range(jobs)))
    for name, pid in (await _pids(home)).items():
        report.rows.append(absolute(f"PSS: {name}", case, "MiB", [size_mb(pid)], bar=BARS.get(name)))


async def _pids(home: Family) -> dict[str, int]:
    assert home.process is not None
    return names(await home.status(), home.process.pid)
