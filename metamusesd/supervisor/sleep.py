"""Supervisor · a tier that nobody uses gives its memory back, and comes when it is wanted.

    no job for tiers.*.idle_unload_s ─► its workers' jobs end (there are none) ─► SIGTERM ─► ASLEEP
    {"say": "wanted"} from the dispatcher: a job waits there ─► is there memory? ─► they start
                                                                  └─ no: the tier that was idle longest goes to sleep

The dispatcher is told who sleeps, and how long the last load took: it counts such a tier as served, after that time.
Tiers without idle_unload_s are pinned: they never sleep, and nobody makes room by them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from metamusesd import control
from metamusesd.board import Board, SlotStatus
from metamusesd.config import Config
from metamusesd.log import Logger
from metamusesd.supervisor.proc import available_bytes
from metamusesd.supervisor.retire import Retiring
from metamusesd.supervisor.room import LOADING, MIB, Room, Shortage, gpus_of
from metamusesd.supervisor.slot import Slot

LOOK_S = 1.0
REMEMBERED_S = 5.0  # a wish, before the depths show who has it
FULL_PAUSE_S = 15.0  # after a GPU was full with what is not ours


class Sleeping:
    """All tiers that may sleep. `available`: see Room."""

    def __init__(
        self, config: Config, board: Board, workers: Sequence[Slot], dispatcher: Slot, retiring: Retiring, log: Logger,
        available: Callable[[int], int] = available_bytes,
    ) -> None:  # fmt: skip
        self._room = Room(config, board, workers, available)
        self.waits: dict[str, str] = {}  # by tier that is wanted and cannot come: why
        self._board, self._workers, self._dispatcher = board, workers, dispatcher
        self._retiring, self._log = retiring, log
        self._wanted: dict[str, float] = {}  # since when; forgotten when nobody waits any more
        self._coming: set[str] = set()  # woken, and not ready yet
        self._told: tuple[int, dict[str, float]] = (0, {})  # what which dispatcher was told
        self._load_s: dict[str, float] = {}
        self._looked_s = 0.0

    @property
    def config(self) -> Config:
        """The one in force."""
        return self._room.config

    @config.setter
    def config(self, config: Config) -> None:
        self._room.config = config

    def wanted(self, tier: object) -> None:
        """A job waits there. Who is drained would not get it."""
        slots = self._of(tier) if isinstance(tier, str) else []
        away = [slot for slot in slots if slot.status is SlotStatus.ASLEEP or slot.sleeping]
        if away and not all(slot.held for slot in away):
            self._wanted[str(tier)] = time.monotonic()

    def turn(self, now_s: float) -> None:
        """Call it at every turn."""
        for tier in list(self._wanted):
            self._wake(tier, now_s)
        for tier in list(self._coming):
            if not any(slot.status in LOADING for slot in self._of(tier)):
                self._coming.discard(tier)
        self._tell()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            for slot in self._workers:
                self._room.remember(slot)
            self._wake_the_rest()
            self._help_who_tries(now_s)
            for tier, limit_s in self._limits().items():
                idle_s = self._idle_s(tier, now_s)
                if idle_s is not None and idle_s >= limit_s and not self._waiting(tier):
                    self._put_to_sleep(tier, now_s, f"no job for {idle_s:.0f} s")

    def _wake_the_rest(self) -> None:
        """Who is asleep in a tier that may not sleep any more, or where jobs wait though some are awake."""
        for tier in {slot.tier for slot in self._workers}:
            states = {slot.status for slot in self._of(tier)}
            mixed = SlotStatus.ASLEEP in states and len(states) > 1 and self._waiting(tier)
            if mixed or (SlotStatus.ASLEEP in states and tier not in self._limits()):
                self.wanted(tier)

    def _help_who_tries(self, now_s: float) -> None:
        """A worker that may not sleep and finds its GPU full, time after time."""
        for slot in self._workers:
            if (
                slot.status is SlotStatus.BACKOFF
                and slot.no_room
                and (short := self._room.on_gpus(gpus_of(slot), [slot], now_s))
            ):
                self._make_room(slot.tier, short, now_s)

    def _limits(self) -> dict[str, float]:
        tiers = self.config.enabled_tiers()
        return {name: tier.idle_unload_s for name, tier in tiers.items() if tier.idle_unload_s}

    def _of(self, tier: str) -> list[Slot]:
        return [slot for slot in self._workers if slot.tier == tier]

    def _waiting(self, tier: str) -> bool:
        queues = self._board.queues.read() or {}
        return any(queues.get(f"{tier}.{name}", 0) for name in ("low", "normal", "high", "critical"))

    def _idle_s(self, tier: str, now_s: float) -> float | None:
        """For how long none of its workers that are awake has had a job; None: one has jobs, or is neither ready nor
        asleep, or all sleep."""
        slots, since_s = [slot for slot in self._of(tier) if slot.status is not SlotStatus.ASLEEP], 0.0
        for slot in slots:
            fields = self._board.workers[slot.spec.row].read()
            busy = slot.recycling or slot.held or slot.parked or slot.kill_s or not slot.epoch
            if slot.status is not SlotStatus.READY or busy or fields is None or fields["slots_used"]:
                return None
            self._load_s[tier] = slot.ready_s - slot.started_s
            since_s = max(since_s, slot.ready_s, fields["last_step_ns"] / 1e9)
        return now_s - since_s if slots else None

    def _put_to_sleep(self, tier: str, now_s: float, because: str) -> None:
        """Jobs that come meanwhile wait, and want it back at once."""
        slots = [slot for slot in self._of(tier) if slot.status is not SlotStatus.ASLEEP]
        if self._dispatcher.control is None:
            return
        for slot in slots:
            slot.recycling = slot.sleeping = True
        self._tell()  # before its workers are retired: the dispatcher keeps in mind which models they have
        for slot in slots:
            if not self._retiring.begin(slot, now_s):
                slot.recycling = slot.sleeping = False
        self._log.info("a tier goes to sleep", tier=tier, because=because)

    def _wake(self, tier: str, now_s: float) -> None:
        asleep = [slot for slot in self._of(tier) if slot.status is SlotStatus.ASLEEP]
        if any(slot.sleeping and slot.pid for slot in self._of(tier)):
            return  # it is still on its way: the next turn
        if asleep and tier in self._limits() and self._forgotten(tier, now_s):
            return
        coming = [slot for other in self._coming for slot in self._of(other) if slot.status is not SlotStatus.READY]
        fitting, short = self._room.fitting(asleep, coming, now_s)
        if asleep and not fitting and short:
            self._wait_for(tier, short, now_s)
            return
        if patient := [slot for slot in fitting if slot.no_room and now_s - slot.since_s < FULL_PAUSE_S]:
            self._complain(tier, str((patient[0].last_error or {}).get("message")))
            return
        self._wanted.pop(tier, None)
        self.waits.pop(tier, None)
        for slot in fitting:
            slot.due_s = 0.0
            slot.move("wake")
        if fitting:
            self._coming.add(tier)
            self._log.info("a tier wakes", tier=tier, needs_mb=self._room.needs(fitting) // MIB)

    def _wait_for(self, tier: str, short: Shortage, now_s: float) -> None:
        self._complain(tier, str(short))
        if self._make_room(tier, short, now_s):
            for slot in self._of(tier):
                slot.last_error = None  # that its GPU was full

    def _complain(self, tier: str, what: str) -> None:
        """Unless some of its workers serve."""
        if all(slot.status is SlotStatus.ASLEEP for slot in self._of(tier)):
            self.waits[tier] = f"tier {tier} is wanted; {what}: free some, or give another tier an idle_unload_s"

    def _forgotten(self, tier: str, now_s: float) -> bool:
        """Nobody waits for it any more: what wanted it is done elsewhere, or cancelled."""
        if self._waiting(tier) or now_s - self._wanted[tier] < REMEMBERED_S:
            return False
        self._wanted.pop(tier)
        self.waits.pop(tier, None)
        return True

    def _make_room(self, tier: str, short: Shortage, now_s: float) -> bool:
        """By the tier that may sleep and has been idle longest, one at a time; by nobody, if all of them together would
        not be enough. Whether somebody goes."""
        if any(slot.sleeping and slot.pid for slot in self._workers):
            return False
        idle = {
            other: idle_s
            for other in self._limits()
            if (idle_s := self._idle_s(other, now_s)) is not None and not self._waiting(other)
        }
        freed = {other: sum(short.freed(slot) for slot in self._of(other) if slot.pid) for other in idle}
        if sum(freed.values()) < short.missing:
            return False
        longest = max((other for other in idle if freed[other]), key=lambda other: idle[other])
        self._put_to_sleep(longest, now_s, f"{tier} needs its memory")
        return True

    def _tell(self) -> None:
        """The dispatcher, who sleeps; again to each new one. A tier that cannot come serves nobody: its jobs may go
        elsewhere."""
        sleeping = {
            tier: round(self._load_s.get(tier, 1.0), 3)
            for tier in {slot.tier for slot in self._workers}
            if tier not in self.waits and (tier in self._coming or self._sleeps(tier))
        }
        now = (self._dispatcher.generation, sleeping)
        fresh = self._told[0] != now[0]
        if now == self._told or (fresh and not sleeping) or self._dispatcher.status is not SlotStatus.READY:
            return
        if self._dispatcher.control is not None and control.send(
            self._dispatcher.control, {"do": "asleep", "tiers": sleeping}
        ):
            self._told = now

    def _sleeps(self, tier: str) -> bool:
        return all(slot.status is SlotStatus.ASLEEP or slot.sleeping for slot in self._of(tier))
