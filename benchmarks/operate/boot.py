"""Operate benchmark · bench process · boot: from the command until both workers are ready, with a warm page cache."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from benchmarks.operate.homes import family, model_of, said_load
from benchmarks.report import Report, absolute

ROUNDS, QUICK_ROUNDS = 9, 2
CASE = "2 workers of 1 core"


def run(args: argparse.Namespace) -> Report:
    """All rows."""
    report = Report(benchmark="operate", command=args.command)
    model, rounds = model_of(args), args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    asyncio.run(_boot_s(model))  # brings interpreter, libraries and compiled modules into the page cache, too
    taken = [asyncio.run(_boot_s(model)) for _ in range(rounds)]
    report.rows = [
        absolute("boot to ready", CASE, "s", taken, bar="<= 2.5"),
        absolute("boot to ready, quickest", CASE, "s", [min(taken)]),
    ]
    report.notes.append(f"boot: {rounds} starts with state directories of their own; {said_load()}")
    return report


async def _boot_s(model: Path) -> float:
    home = family(model)
    try:
        begun_s = time.perf_counter()
        await home.start()
        return time.perf_counter() - begun_s
    finally:
        await home.stop()
        home.close()
