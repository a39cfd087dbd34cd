"""Any benchmark · bench process · say on which machine the figures were taken."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The host of a run. `cores` are those that this process may use, `load` the load average at the start."""

    cpu: str
    cores: int
    memory: str
    kernel: str
    python: str
    load: float = 0.0


def describe() -> Machine:
    """This machine, as the report carries it."""
    return Machine(
        cpu=_line("/proc/cpuinfo", "model name") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory=f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        kernel=platform.release(),
        python=platform.python_version(),
        load=round(os.getloadavg()[0], 2),
    )


def pss_bytes(pid: int) -> int:
    """The proportional share of memory of a process: private pages plus its part of the shared ones."""
    return _rollup_bytes(pid, "Pss")


@dataclass(frozen=True)
class Memory:
    """Bytes of some processes."""

    own: int  # memory that is no file's: KV cache, buffers, heap; what is shared after a fork counts in part
    mapped: int  # pages of files (weights, libraries) that are in memory, which it holds once for everybody


def memory(*pids: int) -> Memory:
    """What these processes hold together."""
    own = sum(_rollup_bytes(pid, "Pss_Anon") for pid in pids)
    return Memory(own, sum(_rollup_bytes(pid, "Rss") - _rollup_bytes(pid, "Anonymous") for pid in pids))


def _rollup_bytes(pid: int, key: str) -> int:
    return int(_line(f"/proc/{pid}/smaps_rollup", key).split()[0]) * 1024


def pinned(cores: list[int], command: list[str]) -> list[str]:
    """`command` on these cores, ended by the kernel when this process dies."""
    return ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", ",".join(map(str, cores)), *command]


def descendants(pid: int) -> list[int]:
    """All living children of `pid`, and theirs."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):  # it has ended meanwhile
                children = [int(word) for word in task.read_text().split()]
                found += children
                waiting += children
    return found


def maps(pid: int, name: str) -> bool:
    """Whether the process has a file of this name mapped. A process that is gone has none."""
    try:
        return name in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def gpus(names: Sequence[str]) -> str:
    """What the driver calls these GPUs: name, memory, version of the driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return subprocess.run([*query, "-i", ",".join(names)], capture_output=True, text=True, check=True).stdout.strip()


def _line(path: str, key: str) -> str:
    """The value of the first `key: value` line of a file under /proc; empty when there is none."""
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
