"""Supervisor · what the kernel says of our children: CPU time, state, private memory, and whether it killed for memory.

Every reader takes the root of the file system for its tests, and answers "unknown" instead of raising: a child may be
gone, and a container may hide any of these files.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from metamusesd.supervisor.cgroup import Group, groups, memory_left

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_S = os.sysconf("SC_CLK_TCK")
STAT_BYTES = 2048  # no process' line is longer
KILLS = {2: "memory.events", 1: "memory.oom_control"}  # by version of the cgroup


@dataclass(frozen=True, slots=True)
class Kernel:
    """One process as the kernel sees it. `state`: R runs or could run, D waits for the disk, T stopped, S sleeps."""

    state: str = "S"
    cpu_s: float = 0.0


def kernel_sight(pid: int, root: Path = Path("/")) -> Kernel:
    """The state of its main thread, and the CPU time of all its threads. Asked of every child at every look: hence no
    pathlib and no decoding."""
    try:
        with open(f"{root}/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(STAT_BYTES).rpartition(b")")[2].split()
        return Kernel(fields[0].decode(), (int(fields[11]) + int(fields[12])) / TICKS_S)
    except (OSError, ValueError, IndexError):
        return Kernel()


def resident_bytes(pid: int, root: Path = Path("/")) -> int:
    """Resident memory, shared or not; 0: unknown."""
    try:
        with open(f"{root}/proc/{pid}/statm", "rb", buffering=0) as file:
            return int(file.read(STAT_BYTES).split()[1]) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def private_bytes(pid: int, root: Path = Path("/")) -> int:
    """Resident memory that it shares with nobody and with no file; 0: unknown."""
    try:
        fields = (root / f"proc/{pid}/statm").read_text().split()
        return max(0, int(fields[1]) - int(fields[2])) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def memory_kills(root: Path = Path("/")) -> int:
    """How often the kernel has killed for want of memory: on this host, and in our own cgroup. It only grows."""
    own = [found[0] for found in groups("memory", root)]
    return Group(2, root / "proc").counted("vmstat", "oom_kill") + sum(
        group.counted(KILLS[group.version], "oom_kill") for group in own
    )


def available_bytes(files: int = 0, root: Path = Path("/")) -> int:
    """Memory that could be taken without swapping, and without a kill by our cgroup's limit; 0: unknown.

    `files`: bytes of what will be taken that are a file's pages. They need memory of the host; a cgroup that is full
    drops such pages, or another group has them already, so they do not count against its limit.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        there = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        there = 0
    left = memory_left(root)
    if left is None:
        return there
    left += files
    return max(1, min(there, left) if there else left)  # not 0, which would say that nothing is known
