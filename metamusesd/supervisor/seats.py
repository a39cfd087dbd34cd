"""Supervisor · do the workers still sit on their cores? A cpuset that changes while they run moves them.

The kernel takes cores away that leave the cpuset, and gives a process that has none left all of what remains: several
workers may then share a core. They are put back as soon as they may; until then this is a complaint in /status.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from metamusesd.board import SlotStatus
from metamusesd.log import Logger
from metamusesd.supervisor.slot import Slot

LOOK_S = 5.0


class Seats:
    """Looks now and then, and mends what can be mended. `complaints`, by worker, is empty while each sits where it was
    put; it is the same mapping for ever."""

    def __init__(
        self,
        log: Logger,
        allowed: Callable[[int], Collection[int]] = os.sched_getaffinity,
        put: Callable[[int, Collection[int]], None] = os.sched_setaffinity,
    ) -> None:
        self.complaints: dict[str, str] = {}
        self._log, self._allowed, self._put = log, allowed, put
        self._looked_s = 0.0

    def look(self, workers: Sequence[Slot], now_s: float) -> None:
        """Call it at every turn of the loop."""
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        found = {slot.name: complaint for slot in workers if (complaint := self._of(slot))}
        for name, complaint in found.items():
            if complaint != self.complaints.get(name):
                self._log.warning(complaint)
        if self.complaints and not found:
            self._log.info("every worker is on its cores again")
        self.complaints.clear()
        self.complaints.update(found)

    def _of(self, slot: Slot) -> str:
        spec = slot.spec.worker
        if spec is None or not spec.cores or not slot.pid or slot.status is not SlotStatus.READY:
            return ""
        wanted = set(spec.cores)
        try:
            if set(self._allowed(slot.pid)) == wanted or self._put_back(slot.pid, wanted):
                return ""
            now = ", ".join(map(str, sorted(self._allowed(slot.pid))))
        except OSError:
            return ""  # it is gone
        return (
            f"{slot.name} is to run on core {_shown(wanted)} and may run on {now} only: the cpuset of this daemon has "
            "changed; widen it again, or reload to place the workers anew"
        )

    def _put_back(self, pid: int, wanted: set[int]) -> bool:
        """All its threads. False: not all of these cores may be used."""
        try:
            for thread in [int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()] or [pid]:
                self._put(thread, wanted)
        except OSError:
            return False
        return set(self._allowed(pid)) == wanted


def _shown(cores: Collection[int]) -> str:
    return "+".join(map(str, sorted(cores)))
