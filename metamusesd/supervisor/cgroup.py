"""Supervisor · the control groups that a process is in, of version two and one, and the memory that they leave it.

Whatever cannot be read is left out: in a container a group's own path may lie outside of what is mounted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NO_LIMIT = 1 << 60  # version one has no word for it, only a huge number
# by version
LIMIT = {2: "memory.max", 1: "memory.limit_in_bytes"}
USED = {2: "memory.current", 1: "memory.usage_in_bytes"}
FILES = {2: ("active_file", "inactive_file"), 1: ("total_active_file", "total_inactive_file")}


@dataclass(frozen=True, slots=True)
class Group:
    """One directory of control files. `version`: 1 or 2; names and meanings of the files differ."""

    version: int
    directory: Path

    def text(self, name: str) -> str:
        """Of one file, stripped; empty: there is none."""
        try:
            return (self.directory / name).read_text("utf-8", "replace").strip()
        except OSError:
            return ""

    def number(self, name: str) -> int | None:
        """Of a file that has one number and nothing else."""
        text = self.text(name)
        return int(text) if text.isdigit() else None

    def counted(self, file: str, name: str) -> int:
        """Of a file with a name and a number on each line; 0: it has no such name."""
        found = (line.partition(" ")[2] for line in self.text(file).splitlines() if line.startswith(f"{name} "))
        return sum(int(text) for text in found if text.isdigit())


def groups(controller: str, root: Path = Path("/"), pid: int = 0) -> Iterator[list[Group]]:
    """For each hierarchy with that controller (`cpu`, `memory`): the group of a process, our own if `pid` is 0, and
    its parents, innermost first. Their files may be missing."""
    try:
        lines = (root / f"proc/{pid or 'self'}/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        inner = Path(path.strip().lstrip("/"))
        version = 1 if controllers else 2
        yield [Group(version, top / each) for each in (inner, *inner.parents)]


def memory_limit(root: Path = Path("/"), pid: int = 0) -> int | None:
    """Bytes that a process' groups may use together: the least of all limits. None: there is none."""
    limits = (_limit(group) for found in groups("memory", root, pid) for group in found)
    return min((limit for limit in limits if limit is not None), default=None)


def memory_left(root: Path = Path("/"), pid: int = 0) -> int | None:
    """Bytes that may still be taken before a limit makes the kernel kill, by the tightest group. None: no limit.

    As in the kernel's MemAvailable, the file pages that a group has (a model's, if it touched them first) count as
    free, for they can be dropped.
    """
    left = [
        max(0, limit - used + _files(group))
        for found in groups("memory", root, pid)
        for group in found
        if (limit := _limit(group)) is not None and (used := group.number(USED[group.version])) is not None
    ]
    return min(left, default=None)


def _limit(group: Group) -> int | None:
    limit = group.number(LIMIT[group.version])
    return limit if limit is not None and limit < NO_LIMIT else None


def _files(group: Group) -> int:
    return sum(group.counted("memory.stat", name) for name in FILES[group.version])
