"""Scrape benchmark · bench process · a real daemon with two echo workers, scraped over its UNIX socket.

Whether a scrape wakes anybody is read off the kernel: voluntary context switches of every child, while nobody scrapes
and while somebody does so ten times a second, in turns.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import Row, absolute, compare

WATCHED_S, QUICK_WATCHED_S = 5.0, 1.5
PAUSE_S = 0.1
START_S = 30.0
ECHO = ("models.smollm2.engine=echo", "tiers.fast.workers=2", "cache.semantic=false")


def rows(scrapes: int, rounds: int) -> list[Row]:
    """Milliseconds of a whole scrape, and its wake-ups beside those of an idle daemon."""
    with tempfile.TemporaryDirectory(prefix="scrape-") as directory:
        daemon = _start(Path(directory))
        try:
            path = Path(directory) / "run/health.sock"
            children = _ready(path, daemon)
            took = [sorted(_scrape_ms(path) for _ in range(scrapes)) for _ in range(rounds)]
            watched_s = QUICK_WATCHED_S if rounds == 1 else WATCHED_S
            woken = [
                (_wake_ups(children, watched_s, path), _wake_ups(children, watched_s, None)) for _ in range(rounds)
            ]
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(START_S)
    return [
        absolute("scrape p50", "daemon", "ms", [each[len(each) // 2] for each in took], bar="< 2"),
        absolute("scrape p99", "daemon", "ms", [each[int(len(each) * 0.99)] for each in took]),
        compare("children's wake-ups", "daemon", "1/s", woken, against="not scraped"),
    ]


def _start(directory: Path) -> subprocess.Popen[bytes]:
    settings = [part for each in (f"daemon.state_dir={directory}", *ECHO) for part in ("--set", each)]
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("METAMUSESD_", "REDIS_"))}
    command = [sys.executable, "-m", "metamusesd", "run", *settings]
    return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _ready(path: Path, daemon: subprocess.Popen[bytes]) -> list[int]:
    """The pids of its children."""
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s and daemon.poll() is None:
        try:
            status = json.loads(_get(path, "/status"))
        except OSError:
            time.sleep(PAUSE_S)
            continue
        if status["state"] == "ready" and all(worker["status"] == "ready" for worker in status["workers"]):
            time.sleep(1.0)  # what a start leaves to do
            return [child["pid"] for child in (status["redis"], status["dispatcher"], *status["workers"])]
        time.sleep(PAUSE_S)
    raise SystemExit("scrape: the daemon did not become ready; run `metamusesd check`")


def _get(path: Path, target: str) -> bytes:
    connection = http.client.HTTPConnection("d", timeout=START_S)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.connect(os.fspath(path))
        connection.request("GET", target)
        return connection.getresponse().read()
    finally:
        connection.close()


def _scrape_ms(path: Path) -> float:
    started_ns = time.perf_counter_ns()
    _get(path, "/metrics")
    return (time.perf_counter_ns() - started_ns) / 1e6


def _wake_ups(pids: list[int], watched_s: float, path: Path | None) -> float:
    """Of all these processes, per second; meanwhile this one is scraped, if it is given."""
    before, end_s = sum(map(_switches, pids)), time.monotonic() + watched_s
    while time.monotonic() < end_s:
        if path is not None:
            _get(path, "/metrics")
        time.sleep(PAUSE_S)
    return (sum(map(_switches, pids)) - before) / watched_s


def _switches(pid: int) -> int:
    """Voluntary context switches of all its threads."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return total
