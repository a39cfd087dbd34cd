"""Operate benchmark · bench process · boot: from the command until both workers are ready, with a warm page cache."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from benchmarks.operate.homes import family, model_of, said_load
from benchmarks.operate.watch import cpu_s
from benchmarks.report import Report, absolute

ROUNDS, QUICK_ROUNDS = 9, 2
CASE = "2 workers of 1 core"


def run(args: argparse.Namespace) -> Report:
    """All rows."""
    report = Report(benchmark="operate", command=args.command)
    model, rounds = model_of(args), args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    asyncio.run(_boot_s(model))  # brings interpreter, libraries and compiled modules into the page cache, too
    taken = [asyncio.run(_boot_s(model)) for _ in range(rounds)]
    walls = [wall_s for wall_s, _ in taken]
    report.rows = [
        absolute("boot to ready", CASE, "s", walls, bar="<= 2.5"),
        absolute("boot to ready, quickest", CASE, "s", [min(walls)]),
        absolute("boot to ready, processor time of all", CASE, "s", [used_s for _, used_s in taken]),
    ]
    report.notes.append(f"boot: {rounds} starts with state directories of their own; {said_load()}")
    return report


async def _boot_s(model: Path) -> tuple[float, float]:
    """(time, processor time of the whole daemon); the second one hardly sees other load."""
    home = family(model)
    try:
        begun_s = time.perf_counter()
        await home.start()
        took_s = time.perf_counter() - begun_s
        assert home.process is not None
        return took_s, sum(cpu_s(pid) for pid in (home.process.pid, *home.kids()))
    finally:
        await home.stop()
        home.close()
