"""Supervisor · a worker that has grown too large is drained and replaced, one of a tier at a time.

    private memory over tiers.*.recycle_mb ─► its jobs end (retire.py) ─► SIGTERM
    ─► a fresh one at once, without touching its restart budget

A model that is over the limit as soon as it is loaded would be recycled for ever: hence a pause between two, which
doubles while the worker grows back too soon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from metamusesd.board import SlotStatus
from metamusesd.config import Config
from metamusesd.log import Logger
from metamusesd.supervisor.proc import private_bytes
from metamusesd.supervisor.retire import Retiring
from metamusesd.supervisor.slot import Slot

LOOK_S = 1.0
PAUSE_S, PAUSE_MOST_S = 60.0, 3600.0
SOON = 4  # a worker that lasts fewer pauses than this doubles its pause
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One worker slot's history: when it was recycled last, and how long it then stays."""

    last_s: float = float("-inf")
    pause_s: float = PAUSE_S
    warned: bool = False  # that its model alone is over the limit

    def may(self, now_s: float) -> bool:
        """Is it time again?"""
        return now_s >= self.last_s + (self.pause_s if self.last_s > float("-inf") else 0.0)

    def recycled(self, now_s: float) -> Record:
        """After one more."""
        soon = now_s - self.last_s < SOON * self.pause_s
        return replace(self, last_s=now_s, pause_s=min(PAUSE_MOST_S, 2 * self.pause_s) if soon else PAUSE_S)


class Recycling:
    """Looks once a second, acts on at most one worker of a tier."""

    def __init__(self, config: Config, workers: Sequence[Slot], retiring: Retiring, log: Logger) -> None:
        self.config = config
        self._workers, self._retiring, self._log = workers, retiring, log
        self._records: dict[str, Record] = {}
        self._looked_s = 0.0

    def turn(self, now_s: float) -> None:
        """Retire who is too large."""
        for slot in self._workers:
            if slot.status is SlotStatus.READY and not slot.private_bytes:
                self._measure_fresh(slot, now_s)
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        for slot in self._workers:
            if slot.status is SlotStatus.READY:
                slot.private_bytes = private_bytes(slot.pid)
            if self._too_large(slot, now_s):
                self._retire(slot, now_s)

    def _measure_fresh(self, slot: Slot, now_s: float) -> None:
        """The turn in which it became ready: it holds its model and nothing else."""
        slot.private_bytes = private_bytes(slot.pid)
        record = self._records.get(slot.name, Record())
        if self._limit(slot) and slot.private_bytes > self._limit(slot):
            if not record.warned:
                self._log.warning("over recycle_mb right after loading", child=slot.name, **self._sizes(slot))
            self._records[slot.name] = replace(record, warned=True, last_s=max(record.last_s, now_s))

    def _too_large(self, slot: Slot, now_s: float) -> bool:
        """Only a worker that is linked; and none while another of its tier is away."""
        limit = self._limit(slot)
        if not limit or slot.status is not SlotStatus.READY or slot.kill_s or not slot.epoch:
            return False
        if slot.recycling or slot.held or slot.parked or slot.private_bytes <= limit:
            return False
        record = self._records.get(slot.name, Record())
        siblings = [other for other in self._workers if other is not slot and other.tier == slot.tier]
        present = (SlotStatus.READY, SlotStatus.FAILED, SlotStatus.ASLEEP)
        return record.may(now_s) and all(other.status in present and not other.recycling for other in siblings)

    def _retire(self, slot: Slot, now_s: float) -> None:
        if not self._retiring.begin(slot, now_s):
            return  # the dispatcher is away; the next look tries again
        self._records[slot.name] = self._records.get(slot.name, Record()).recycled(now_s)
        slot.recycling = True
        self._log.info("recycling", child=slot.name, pid=slot.pid, **self._sizes(slot))

    def _limit(self, slot: Slot) -> int:
        tier = self.config.tiers.get(slot.tier)
        return tier.recycle_mb * MIB if tier else 0

    def _sizes(self, slot: Slot) -> dict[str, int]:
        return {"private_mb": slot.private_bytes // MIB, "recycle_mb": self._limit(slot) // MIB}
