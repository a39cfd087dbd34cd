"""Supervisor · holds the watches: asks board and kernel about every child, names the hung. Rule: watchdog.py.

Redis has no watch: loading a long file is its right, and the dispatcher tells when it is away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from metamusesd.board import Board, SlotStatus
from metamusesd.config import Daemon
from metamusesd.supervisor import watchdog
from metamusesd.supervisor.proc import kernel_sight
from metamusesd.supervisor.slot import Slot
from metamusesd.supervisor.spec import Kind
from metamusesd.supervisor.watchdog import Doing, Patience, Sight, Watch

TICK_S, QUIET_TICK_S = 0.25, 0.75  # between two looks; the watchdog counts no pause of a second or longer


class Guard:
    """One watch a child."""

    def __init__(self, board: Board, daemon: Daemon) -> None:
        self._board = board
        self.adopt(daemon)
        self._watches: dict[tuple[str, int], Watch] = {}

    def adopt(self, daemon: Daemon) -> None:
        """Other limits from now on."""
        self._daemon, self._patience = daemon, Patience(daemon.hang_s, daemon.hang_least_s)

    def forget(self, slot: Slot) -> None:
        """A new process starts with a clean record, and with the pace of the one before it."""
        if (watch := self._watches.get(_key(slot))) is not None:
            self._watches[_key(slot)] = Watch(paces=watch.paces)

    def hung(self, slot: Slot, now_s: float) -> str:
        """Why this child is hung, or nothing. Call it at every tick: what it does not see, it does not count."""
        if slot.kill_s or not slot.pid or slot.spec.kind is Kind.REDIS:
            return ""
        boot_s = (slot.config.daemon if slot.config else self._daemon).boot_s
        if slot.status is SlotStatus.STARTING and now_s - slot.started_s > boot_s:
            return f"not ready after {boot_s:g} s"
        kernel = kernel_sight(slot.pid)
        sight = replace(
            self._sight(slot), cpu_s=kernel.cpu_s, wants_cpu=kernel.state in "RD", stopped=kernel.state in "Tt"
        )
        watch = self._watches[_key(slot)] = watchdog.look(self._watches.get(_key(slot), Watch()), sight, now_s)
        slot.publish_patience(watchdog.limit_s(watch, self._patience))
        return watchdog.verdict(watch, self._patience)

    def rest_s(self, slots: Sequence[Slot]) -> float:
        """Until the next look at them: longer while all are well and nobody works. A signal, a message or a client ends
        it at once."""
        well = all(slot.status in (SlotStatus.READY, SlotStatus.ASLEEP) for slot in slots)
        quiet = well and not self._board.dispatcher.get("running")
        return QUIET_TICK_S if quiet else TICK_S

    def patience_s(self, slot: Slot) -> float:
        """How long it may now go without progress; for people."""
        return watchdog.limit_s(self._watches.get(_key(slot), Watch()), self._patience)

    def cpu_s(self, slot: Slot) -> float:
        """What its process has used, as the last look saw it; for the metrics."""
        return self._watches.get(_key(slot), Watch()).last.cpu_s

    def _sight(self, slot: Slot) -> Sight:
        if slot.spec.kind is Kind.DISPATCHER:
            beat_ns = self._board.dispatcher.get("beat_ns")
            is_up = slot.status is SlotStatus.READY and beat_ns
            return watchdog.dispatcher_sight(beat_ns) if is_up else Sight(Doing.NOTHING)
        if slot.spec.kind is Kind.VECTORS:
            is_up = slot.status is SlotStatus.READY
            return watchdog.vectors_sight(self._board.vectors.read()) if is_up else Sight(Doing.NOTHING)
        fields = self._board.workers[slot.spec.row].read()
        if slot.status is SlotStatus.STARTING and (fields is None or not fields["beat_ns"]):
            return Sight(Doing.NOTHING)  # boot_s is its limit until its model begins to load
        linked = fields is not None and fields["epoch"] == slot.epoch
        return watchdog.worker_sight(fields, self._board.frames_sent(slot.spec.row) if linked else 0)


def _key(slot: Slot) -> tuple[str, int]:
    """While a reload replaces a worker, two have its name."""
    return slot.name, slot.spec.row
