"""Supervisor · what the kernel says of our children: CPU time, state, private memory, and whether it killed for memory.

Every reader takes the root of the file system for its tests, and answers "unknown" instead of raising: a child may be
gone, and a container may hide any of these files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_S = os.sysconf("SC_CLK_TCK")
STAT_BYTES = 2048  # no process' line is longer


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
    return sum(_counted(path, "oom_kill") for path in _counters(root))


def _counters(root: Path) -> Iterator[Path]:
    yield root / "proc/vmstat"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield root / "sys/fs/cgroup" / path.strip().lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            yield root / "sys/fs/cgroup/memory" / path.strip().lstrip("/") / "memory.oom_control"


def _counted(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    found = (line.partition(" ")[2] for line in lines if line.startswith(f"{name} "))
    return sum(int(text) for text in found if text.isdigit())


def available_bytes(root: Path = Path("/")) -> int:
    """Memory that could be taken without swapping; 0: unknown. A cgroup's own limit is not counted."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0
