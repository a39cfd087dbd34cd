"""Operate benchmark · bench process · the daemon's daily life: what it costs to start, to wait, to reload, to run on.

boot     from the command to ready: two workers of the model, its file in the page cache
memory   PSS of the supervisor and of the dispatcher, after some hundred jobs
idle     processor time and wake-ups of the whole daemon while nobody asks
reload   inter-token latency of a stream while another worker is replaced, against an undisturbed one
soak     a day of traffic in an hour (--minutes): every job ends, memory, descriptors and Redis stay level

python -m benchmarks operate [--case boot|memory|idle|reload|soak] [--minutes N] [--rounds N]      all but the soak
"""

from __future__ import annotations

import argparse
import importlib

from benchmarks.report import Report

CASES = {"boot": "boot", "memory": "resting", "idle": "resting", "reload": "reload", "soak": "soak"}
USUAL = ("boot", "memory", "idle", "reload")


def run(args: argparse.Namespace) -> Report:
    """The cases that are asked for, each of its own module."""
    report = Report(benchmark="operate", command=args.command)
    cases = args.case or list(USUAL)
    if unknown := set(cases) - set(CASES):
        raise SystemExit(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    for module in dict.fromkeys(CASES[case] for case in cases):
        found: Report = importlib.import_module(f"benchmarks.operate.{module}").run(args)
        report.rows += found.rows
        report.notes += found.notes
    return report


def broken(report: Report) -> bool:
    """Whether a promise was broken, which is worse than a bar that was missed."""
    return any(row.unit == "violations" and row.met is False for row in report.rows)
