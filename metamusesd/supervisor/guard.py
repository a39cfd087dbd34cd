"""Supervisor · holds the watches: asks the board about every child, names those that are hung. Rule: watchdog.py."""

from __future__ import annotations

from metamusesd.board import Board, SlotStatus
from metamusesd.config import Daemon
from metamusesd.supervisor import watchdog
from metamusesd.supervisor.slot import Slot
from metamusesd.supervisor.spec import Kind


class Guard:
    """One watch a child. Redis has none: loading a long file is its right, and the dispatcher tells when it is away."""

    def __init__(self, board: Board, daemon: Daemon) -> None:
        self._board, self._daemon = board, daemon
        self._watches: dict[str, watchdog.Watch] = {}

    def forget(self, slot: Slot) -> None:
        """A new process starts with a clean record."""
        self._watches.pop(slot.name, None)

    def hung(self, slot: Slot, now_s: float) -> str:
        """Why this child is hung, or nothing. Call it at every tick: what it does not see, it does not count."""
        if slot.kill_s or not slot.pid or slot.spec.kind is Kind.REDIS:
            return ""
        if slot.status is SlotStatus.STARTING and now_s - slot.started_s > self._daemon.boot_s:
            return f"not ready after {self._daemon.boot_s:g} s"
        if slot.status is not SlotStatus.READY:
            return ""
        seen, owes, limit_s = self._record(slot)
        watch = watchdog.look(self._watches.get(slot.name, watchdog.Watch()), seen, owes, now_s)
        self._watches[slot.name] = watch
        return f"no progress for {limit_s:.1f} s" if watchdog.idle_s(watch) > limit_s else ""

    def _record(self, slot: Slot) -> tuple[tuple[int, ...], bool, float]:
        """(what counts its progress, does it owe any, the patience with it)."""
        if slot.spec.kind is Kind.DISPATCHER:
            return (self._board.dispatcher.get("beat_ns"),), True, self._daemon.hang_s
        fields = self._board.workers[slot.spec.row].read()
        seen, owes = watchdog.worker_debt(fields, self._board.frames_sent(slot.spec.row))
        return seen, owes, watchdog.worker_limit_s(fields, self._daemon.hang_s)
