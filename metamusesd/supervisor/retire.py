"""Supervisor · lets a worker's jobs end before something happens to it: recycling, a reload, an operator's drain.

begin ─► {"do": "retire"} ─► the dispatcher sends it nothing more, lets its jobs end, gives back what is too slow
      ─► {"say": "retired"}, or no answer in time, or the pipe is gone
      ─► slot.recycling: SIGTERM · slot.held: it stays, without jobs, until `resume`
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from metamusesd import control
from metamusesd.config import Config
from metamusesd.log import Logger
from metamusesd.supervisor.slot import Slot

GRACE_S = 5.0  # beyond drain_s, for the dispatcher's answer


class Retiring:
    """All workers' ways out. `workers` may grow and shrink."""

    def __init__(self, config: Config, workers: Sequence[Slot], dispatcher: Slot, log: Logger) -> None:
        self.config = config
        self._workers, self._dispatcher, self._log = workers, dispatcher, log

    def begin(self, slot: Slot, now_s: float) -> bool:
        """Its jobs shall end. False: the dispatcher is away; try again. Legal twice."""
        if slot.retire_s:
            return True
        if not self._tell(slot, "retire"):
            return False
        slot.retire_s = now_s + self.config.daemon.drain_s + GRACE_S
        return True

    def resume(self, slot: Slot) -> None:
        """It gets jobs again; one without a link gets its link with the next turn. Who is leaving anyway, leaves."""
        slot.held = slot.emptied = False
        if slot.recycling:
            return
        slot.retire_s = 0.0
        if slot.epoch:
            self._tell(slot, "resume")

    def turn(self, now_s: float) -> None:
        """Go on without those whose time is over; begin with those who are held and were not asked yet."""
        for slot in self._workers:
            if slot.retire_s and now_s >= slot.retire_s:
                self._end(slot, "its jobs did not end in time")
            elif slot.held and not slot.drained:
                self.begin(slot, now_s)

    def retired(self, row: object, epoch: object) -> None:
        """The dispatcher: this worker holds no job any more."""
        for slot in self._workers:
            if slot.retire_s and (slot.spec.row, slot.epoch) == (row, epoch):
                self._end(slot, "it holds no job any more")

    def parted(self, worker: Slot) -> None:
        """Its pipe is gone, and its jobs with it: nothing to wait for."""
        if worker.retire_s:
            self._end(worker, "it has lost its dispatcher")

    def _tell(self, slot: Slot, do: str) -> bool:
        message = {"do": do, "row": slot.spec.row, "epoch": slot.epoch}
        return self._dispatcher.control is not None and control.send(self._dispatcher.control, message)

    def _end(self, slot: Slot, because: str) -> None:
        slot.retire_s = 0.0
        if slot.recycling:
            self._log.info("recycled worker shall leave", child=slot.name, pid=slot.pid, because=because)
            slot.kill(signal.SIGTERM, self.config.daemon.stop_s)
        else:
            slot.emptied = True
            self._log.info("drained", child=slot.name, pid=slot.pid, because=because)
