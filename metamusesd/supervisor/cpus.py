"""Supervisor · the cores that this process may use: affinity ∩ cpuset, bounded by quota, physical cores first."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Core:
    """One CPU as the kernel numbers it. `physical`: the first usable hardware thread of its core."""

    number: int
    physical: bool = True


@dataclass(frozen=True, slots=True)
class Cores:
    """What may be used, physical cores first. `quota`: how many CPUs the cgroup pays for, or None."""

    usable: tuple[Core, ...]
    quota: float | None = None

    @property
    def numbers(self) -> frozenset[int]:
        """All usable CPU numbers."""
        return frozenset(core.number for core in self.usable)


def usable_cores(root: Path = Path("/"), pid: int = 0) -> Cores:
    """Ask the kernel; `pid`: of whom, 0: of this process. The affinity mask already honours the cpuset."""
    allowed = os.sched_getaffinity(pid)
    return arrange(allowed, {number: _siblings(root, number) for number in allowed}, _quota(root, pid))


def arrange(allowed: Iterable[int], siblings: dict[int, set[int]], quota: float | None) -> Cores:
    """Order the cores: the first thread of every physical core, then the others."""
    numbers = sorted(allowed)
    first = {number: number == min(siblings.get(number, {number}) & set(numbers) or {number}) for number in numbers}
    ordered = sorted(numbers, key=lambda number: (not first[number], number))
    return Cores(tuple(Core(number, first[number]) for number in ordered), quota)


def parse_list(text: str) -> set[int]:
    """The kernel's list form: `0-3,8`."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        numbers.update(range(int(low), int(high or low) + 1))
    return numbers


def _siblings(root: Path, number: int) -> set[int]:
    try:
        return parse_list((root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").read_text())
    except (OSError, ValueError):
        return {number}


def _quota(root: Path, pid: int = 0) -> float | None:
    """CPUs that the cgroup's quota pays for: the least of the group and its parents; v2, then v1."""
    try:
        lines = (root / f"proc/{pid or 'self'}/cgroup").read_text().splitlines()
    except OSError:
        return None
    groups = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    quotas = [_quota_v2(directory) for directory in _upwards(root / "sys/fs/cgroup", groups.get("", ""))]
    for controllers, path in groups.items():
        if "cpu" in controllers.split(","):
            quotas += [_quota_v1(directory) for directory in _upwards(root / "sys/fs/cgroup/cpu", path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _upwards(top: Path, path: str) -> list[Path]:
    relative = Path(path.lstrip("/"))
    return [top / relative, *(top / parent for parent in relative.parents)]


def _quota_v2(directory: Path) -> float | None:
    try:
        quota, period = (directory / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1(directory: Path) -> float | None:
    try:
        quota, period = (int((directory / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError):
        return None
