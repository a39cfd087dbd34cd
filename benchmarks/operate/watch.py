"""Operate benchmark · bench process · what a daemon holds, as the kernel, Redis and its own /status show it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.family import Family, descriptors
from benchmarks.faults.raw import PREFIX
from benchmarks.faults.resp import Redis
from benchmarks.machine import pss_bytes

MIB = 1 << 20
NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. By name of the process: PSS, and the part of it that is no file's, in MiB; open descriptors; pid.

    The PSS of a mapped file falls and rises with every other process that maps it, such as another daemon's workers.
    """

    at_s: float
    pss_mb: dict[str, float] = field(default_factory=dict)
    own_mb: dict[str, float] = field(default_factory=dict)  # its share of memory that is no file's
    fds: dict[str, int] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)
    keys: int = 0
    answers: int = 0  # of these keys, answers that the exact cache keeps
    redis_mb: float = 0.0
    running: int = 0
    waiting: int = 0
    done: int = 0  # jobs that have ended so far
    entries: int = 0  # of the semantic cache


async def look(family: Family, redis: Redis, started_s: float, done: int) -> Sample | None:
    """None: the daemon or its Redis does not answer now."""
    status = await family.status()
    if not status or family.process is None:
        return None
    pids = names(status, family.process.pid)
    try:
        keys, answers, info = await redis.ask_all([("DBSIZE",), ("ZCARD", f"{PREFIX}:answers"), ("INFO", "memory")])
    except OSError:
        return None
    sizes = await asyncio.to_thread(lambda: {name: _sizes_mb(pid) for name, pid in pids.items()})
    return Sample(
        at_s=round(time.monotonic() - started_s, 2),
        pss_mb={name: size[0] for name, size in sizes.items()},
        own_mb={name: size[1] for name, size in sizes.items()},
        fds={name: descriptors(pid) for name, pid in pids.items()},
        pids=pids,
        keys=keys,
        answers=answers,
        redis_mb=round(_used(info.decode()) / MIB, 2),
        running=status["dispatcher"]["running"],
        waiting=_waiting(status),
        done=done,
        entries=(status["vectors"] or {}).get("entries", 0),
    )


def names(status: dict[str, Any], supervisor: int) -> dict[str, int]:
    """Name → pid of every process of the family that lives."""
    kids = [status["redis"], status["dispatcher"], status["vectors"] or {}, *status["workers"]]
    return {"supervisor": supervisor} | {kid["name"]: kid["pid"] for kid in kids if kid.get("pid")}


def size_mb(pid: int) -> float:
    """Its PSS; 0 when it is gone."""
    try:
        return round(pss_bytes(pid) / MIB, 2)
    except (OSError, ValueError, IndexError):
        return 0.0


def _sizes_mb(pid: int) -> tuple[float, float]:
    """(PSS, the part of it that is no file's); 0 when it is gone."""
    try:
        words = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
        found = {word[0]: int(word[1]) for word in words}
    except (OSError, ValueError, IndexError):
        return 0.0, 0.0
    return round(found.get("Pss:", 0) / 1024, 2), round(found.get("Pss_Anon:", 0) / 1024, 2)


def cpu_s(pid: int) -> float:
    """What all its threads have had of a core; 0 when it is gone. Counted in nanoseconds, unlike /proc/PID/stat."""
    return sum(_words(task / "schedstat")[0] for task in _tasks(pid)) / NS


def wakeups(pid: int) -> int:
    """How often its threads have slept and were woken."""
    found = 0
    for task in _tasks(pid):
        try:
            lines = (task / "status").read_text().splitlines()
        except OSError:
            continue
        found += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return found


def read(path: Path) -> list[Sample]:
    """Samples of an earlier run."""
    return [Sample(**json.loads(line)) for line in path.read_text().splitlines()]


def write(path: Path, sample: Sample) -> None:
    """One JSON object a line."""
    with path.open("a") as out:
        out.write(json.dumps(asdict(sample)) + "\n")


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _words(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return [0]


def _used(info: str) -> float:
    return float(next(line for line in info.splitlines() if line.startswith("used_memory:")).split(":")[1])


def _waiting(status: dict[str, Any]) -> int:
    depths = status["queues"]["by_queue"].values()
    return sum(depth[name] for depth in depths for name in ("low", "normal", "high", "critical"))


def load_s() -> float:
    """The load average of the last minute."""
    return round(os.getloadavg()[0], 2)
