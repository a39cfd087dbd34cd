"""Stage 0 · command line · this machine as the kernel tells it: a snapshot for `doctor`, taken over half a second.

Every reader takes the root of the file system for its tests, and leaves out what it may not see.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from metamusesd.supervisor.cgroup import memory_limit
from metamusesd.supervisor.cpus import Cores, parse_list, usable_cores
from metamusesd.supervisor.proc import TICKS_S

ROOT = Path("/")
CPUS = "sys/devices/system/cpu"
SAMPLE_S = 0.5
UNSYNCHRONIZED = 0x40  # STA_UNSYNC of adjtimex(2)


@dataclass(frozen=True, slots=True)
class Busy:
    """A process that used CPU during the sample. `share` of one core; `core` where it ran last."""

    pid: int
    name: str
    share: float
    core: int
    parents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """What was seen. None, 0 and empty mean that the kernel does not say."""

    cores: Cores
    online: int = 1
    siblings: dict[int, frozenset[int]] = field(default_factory=dict)
    nodes: dict[int, frozenset[int]] = field(default_factory=dict)
    governors: dict[int, str] = field(default_factory=dict)
    busy: tuple[Busy, ...] = ()
    load: float = 0.0
    steal: float = 0.0  # of the machine's CPU time, 0 to 1
    memory: dict[str, int] = field(default_factory=dict)  # /proc/meminfo, bytes
    memory_limit: int | None = None  # of the cgroup
    huge_pages: str = ""  # transparent ones: always, madvise, never
    limits: dict[str, int | None] = field(default_factory=dict)  # soft ones; None: unlimited
    synchronized: bool | None = None
    jump_s: float = 0.0  # how far the clock was set during the sample
    gpus: tuple[str, ...] = ()  # device nodes
    gpu_ids: tuple[str, ...] = ()  # UUIDs, as the driver names them
    driver: str = ""


def look(pid: int | None = None, root: Path = ROOT, sample_s: float = SAMPLE_S) -> Machine:
    """Blocks for the sample. `pid`: whose cores, limits and cgroup count, the daemon's; None: our own."""
    clocks, cpu, work = _clocks(), _cpu_ticks(root), _work(root)
    time.sleep(sample_s)
    later, cpu_later, work_later = _clocks(), _cpu_ticks(root), _work(root)
    passed_s = max(later[1] - clocks[1], 1e-3)
    ticks = [after - before for before, after in zip(cpu, cpu_later, strict=False)]
    numbers = [int(path.name.removeprefix("cpu")) for path in (root / CPUS).glob("cpu[0-9]*")]
    return Machine(
        _cores(root, pid), os.cpu_count() or 1,
        {number: _list(root / CPUS / f"cpu{number}/topology/thread_siblings_list") for number in numbers},
        {int(path.name[4:]): _list(path / "cpulist") for path in (root / "sys/devices/system/node").glob("node[0-9]*")},
        {number: word for number in numbers
         if (word := _text(root / CPUS / f"cpu{number}/cpufreq/scaling_governor"))},
        _busy(work, work_later, passed_s), float((_text(root / "proc/loadavg") or "0").split()[0]),
        ticks[7] / max(sum(ticks), 1) if len(ticks) > 7 else 0.0, _memory(root), memory_limit(root, pid or 0),
        _chosen(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")), _limits(root, pid), _synchronized(),
        (later[0] - clocks[0]) - (later[1] - clocks[1]),
        tuple(str(path) for path in sorted((root / "dev").glob("nvidia[0-9]*"))), _gpu_ids(root),
        _text(root / "proc/driver/nvidia/version").partition("\n")[0],
    )  # fmt: skip


def _cores(root: Path, pid: int | None) -> Cores:
    """Of a daemon that is just leaving: our own."""
    try:
        return usable_cores(root, pid or 0)
    except ProcessLookupError:
        return usable_cores(root)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _list(path: Path) -> frozenset[int]:
    try:
        return frozenset(parse_list(_text(path)))
    except ValueError:
        return frozenset()


def _chosen(text: str) -> str:
    """`always [madvise] never` → madvise."""
    return text.partition("[")[2].partition("]")[0]


def _clocks() -> tuple[float, float]:
    return time.time(), time.monotonic()


def _cpu_ticks(root: Path) -> list[int]:
    """user nice system idle iowait irq softirq steal, of all CPUs together."""
    return [int(word) for word in _text(root / "proc/stat").partition("\n")[0].split()[1:9] if word.isdigit()]


def _work(root: Path) -> dict[int, tuple[str, int, int, int]]:
    """By pid: name, parent, ticks, the core where it ran last."""
    found = {}
    for path in (root / "proc").glob("[0-9]*/stat"):
        head, _, tail = _text(path).rpartition(")")
        fields = tail.split()
        if len(fields) > 36:
            name = head.partition("(")[2]
            found[int(path.parent.name)] = (name, int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[36]))
    return found


def _busy(
    before: dict[int, tuple[str, int, int, int]], after: dict[int, tuple[str, int, int, int]], passed_s: float
) -> tuple[Busy, ...]:
    parents = {pid: parent for pid, (_, parent, _, _) in after.items()}
    found = [
        Busy(pid, name, (ticks - before[pid][2]) / TICKS_S / passed_s, core, tuple(_ancestors(pid, parents)))
        for pid, (name, _, ticks, core) in after.items()
        if pid in before and ticks > before[pid][2]
    ]
    return tuple(sorted(found, key=lambda busy: -busy.share))


def _ancestors(pid: int, parents: dict[int, int]) -> Iterable[int]:
    while (pid := parents.get(pid, 0)) > 0:
        yield pid


def _memory(root: Path) -> dict[str, int]:
    found = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def _limits(root: Path, pid: int | None) -> dict[str, int | None]:
    """`Max open files` → its soft limit."""
    found: dict[str, int | None] = {}
    for line in _text(root / f"proc/{pid or 'self'}/limits").splitlines()[1:]:
        words = line[26:].split()
        if words:
            found[line[:26].strip()] = int(words[0]) if words[0].isdigit() else None
    return found


def _synchronized() -> bool | None:
    """Whether somebody keeps the clock right, as adjtimex(2) says; None: it does not."""
    libc = ctypes.CDLL(None, use_errno=True)
    timex = (ctypes.c_int * 128)()  # modes = 0: only read. Four longs follow it, then status.
    if not hasattr(libc, "adjtimex") or libc.adjtimex(ctypes.byref(timex)) < 0:
        return None
    return not timex[10] & UNSYNCHRONIZED


def _gpu_ids(root: Path) -> tuple[str, ...]:
    lines = (line for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
             for line in _text(path).splitlines())  # fmt: skip
    return tuple(line.partition(":")[2].strip() for line in lines if line.startswith("GPU UUID"))
