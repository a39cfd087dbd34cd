"""Faults benchmark · bench process · which case runs: the proof, or one of the measurements beside it.

python -m benchmarks faults [--minutes N] [--seed S] [--appendfsync always|everysec]     the proof
python -m benchmarks faults --case recovery|claim|eta|aging                              measurements
"""

from __future__ import annotations

import argparse
import asyncio
import secrets

from benchmarks.faults import aging, calibration, claim_cost, recovery
from benchmarks.faults.proof import explain, prove, rows
from benchmarks.report import Report

MEASURES = {"recovery": recovery, "claim": claim_cost, "eta": calibration, "aging": aging}
MINUTES = 5.0
QUICK_MINUTES = 0.25


def run(args: argparse.Namespace) -> Report:
    """The proof unless --case names something else."""
    report = Report(benchmark="faults", command=args.command)
    for case in args.case or ["proof"]:
        if case != "proof" and case not in MEASURES:
            raise SystemExit(f"no case {case!r}; there are proof, {', '.join(MEASURES)}")
        found = _proof(args) if case == "proof" else MEASURES[case].run(args)
        report.rows += found.rows
        report.notes += found.notes
    return report


def broken(report: Report) -> bool:
    """Whether a promise was broken, which is worse than a bar that was missed."""
    return any(row.unit == "violations" and row.met is False for row in report.rows)


def _proof(args: argparse.Namespace) -> Report:
    minutes = args.minutes or (QUICK_MINUTES if args.quick else MINUTES)
    seed = secrets.randbelow(1_000_000) if args.seed is None else args.seed
    print(f"faults: {minutes:g} minutes, --seed {seed}, appendfsync {args.appendfsync}", flush=True)
    verdict = asyncio.run(prove(minutes * 60, seed, args.appendfsync))
    if verdict.violations:
        print(*explain(verdict), f"\nall of them, and the whole history: {verdict.folder}", sep="\n", flush=True)
    return rows(verdict, args.appendfsync)
