"""Supervisor · the cores that this process may use: affinity ∩ cpuset, bounded by quota, physical cores first.

Where a processor has cores of two kinds, the quick ones come before the slow ones; then node by node.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from metamusesd.supervisor.cgroup import Group, groups

ONE_NODE: Mapping[int, int] = {}
QUICK_SHARE = 0.8  # a core with less than this of the best one's capacity is a slow one


@dataclass(frozen=True, slots=True)
class Core:
    """One CPU as the kernel numbers it. `physical`: the first usable hardware thread of its core."""

    number: int
    physical: bool = True
    home: int = -1  # the first usable thread of its core: hardware threads with the same one share a physical core
    node: int = 0  # of the memory that is near


@dataclass(frozen=True, slots=True)
class Cores:
    """What may be used, physical cores first. `quota`: how many CPUs the cgroup pays for, or None."""

    usable: tuple[Core, ...]
    quota: float | None = None

    @property
    def numbers(self) -> frozenset[int]:
        """All usable CPU numbers."""
        return frozenset(core.number for core in self.usable)

    @property
    def nodes(self) -> dict[int, int]:
        """CPU number → its node; empty on a host with one node, where nearness means nothing."""
        found = {core.number: core.node for core in self.usable}
        return found if len(set(found.values())) > 1 else {}

    @property
    def homes(self) -> dict[int, int]:
        """CPU number → the physical core that it is a thread of."""
        return {core.number: core.home for core in self.usable}


def usable_cores(root: Path = Path("/"), pid: int = 0) -> Cores:
    """Ask the kernel; `pid`: of whom, 0: of this process. The affinity mask already honours the cpuset, and has no core
    that is offline."""
    allowed = os.sched_getaffinity(pid)
    siblings = {number: _siblings(root, number) for number in allowed}
    return arrange(allowed, siblings, _quota(root, pid), _nodes(root), _slow(root))


def arrange(
    allowed: Iterable[int],
    siblings: Mapping[int, set[int]],
    quota: float | None,
    nodes: Mapping[int, int] = ONE_NODE,
    slow: Collection[int] = (),
) -> Cores:
    """Order the cores: the first thread of every physical core, quick ones, node by node; then the other threads."""
    numbers = sorted(allowed)
    home = {number: min(siblings.get(number, {number}) & set(numbers) or {number}) for number in numbers}

    def rank(number: int) -> tuple[bool, bool, int, int]:
        return number != home[number], number in slow, nodes.get(number, 0), number

    ordered = sorted(numbers, key=rank)
    usable = (Core(number, number == home[number], home[number], nodes.get(number, 0)) for number in ordered)
    return Cores(tuple(usable), quota)


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


def _nodes(root: Path) -> dict[int, int]:
    """CPU number → memory node; those of a kernel that knows of no nodes are all on the first."""
    found: dict[int, int] = {}
    for directory in (root / "sys/devices/system/node").glob("node[0-9]*"):
        try:
            numbers = parse_list((directory / "cpulist").read_text())
        except (OSError, ValueError):
            continue
        found |= dict.fromkeys(numbers, int(directory.name.removeprefix("node")))
    return found


def _slow(root: Path) -> set[int]:
    """The cores that are made to save power: Intel names them, other processors give each core a capacity."""
    try:
        return parse_list((root / "sys/devices/cpu_atom/cpus").read_text())
    except (OSError, ValueError):
        pass
    capacities: dict[int, int] = {}
    for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpu_capacity"):
        try:
            capacities[int(path.parent.name.removeprefix("cpu"))] = int(path.read_text())
        except (OSError, ValueError):
            continue
    most = max(capacities.values(), default=0)
    return {number for number, capacity in capacities.items() if capacity < most * QUICK_SHARE}


def _quota(root: Path, pid: int = 0) -> float | None:
    """CPUs that the cgroup's quota pays for: the least of the group and its parents; v2, then v1."""
    quotas = (_paid(group) for found in groups("cpu", root, pid) for group in found)
    return min((quota for quota in quotas if quota is not None), default=None)


def _paid(group: Group) -> float | None:
    """Of one group. No quota is `max` in version two, and -1 in version one."""
    if group.version == 2:
        words = group.text("cpu.max").split()
    else:
        words = [group.text(f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return None
    return int(words[0]) / int(words[1]) if int(words[0]) and int(words[1]) else None
