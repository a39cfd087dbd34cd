"""Supervisor · from one configuration to another while jobs run: only what differs is replaced, one after the other.

    wanted ─► workers that are not wanted leave ─► workers whose makings changed are replaced, new ones are added
           ─► the dispatcher, and vectors, are replaced if theirs changed ─► adopted
    a new worker that does not load, or fails its canary ─► the same way back to the present configuration

A worker's jobs end before it leaves (retire.py). Its successor comes first, and the old one leaves when that one is
ready, when memory allows and the two do not fight over cores: on one core they share it for as long as a model loads;
engines with several threads would wait for each other at every barrier, so there the old one leaves first.

The way is a generator: the supervisor's loop takes one step at every turn, and each `yield` waits for the next.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from metamusesd import control
from metamusesd.board import SlotStatus
from metamusesd.config import Config
from metamusesd.log import Logger
from metamusesd.supervisor.changes import makings
from metamusesd.supervisor.nursery import Nursery
from metamusesd.supervisor.placement import Placement
from metamusesd.supervisor.retire import GRACE_S, Retiring
from metamusesd.supervisor.room import fits
from metamusesd.supervisor.slot import Slot, exit_text
from metamusesd.supervisor.spec import ChildSpec, Entries, Kind

START_S = 10.0  # beyond boot_s, which the guard holds: for a fork that is not possible at once

Way = Generator[None, None, None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A configuration and the workers that follow from it."""

    config: Config
    placement: Placement

    def specs(self, entries: Entries) -> list[ChildSpec]:
        """Its workers. Their rows are the nursery's to give."""
        return [ChildSpec(each.name, Kind.WORKER, entries.worker_entry, -1, each) for each in self.placement.workers]


@dataclass(frozen=True, slots=True)
class Told:
    """What happens on the way, for whoever asked, and how it ended: `problem` is empty when it is adopted."""

    step: Callable[[str], None]
    end: Callable[[str], None]


class Stuck(Exception):
    """A step of the way is not possible: why."""


class Reload:
    """One at a time. `adopt` is called with what is in force from then on."""

    def __init__(
        self, present: Wanted, nursery: Nursery, retiring: Retiring, entries: Entries,
        adopt: Callable[[Wanted], None], log: Logger,
    ) -> None:  # fmt: skip
        self._present, self._nursery, self._retiring, self._entries = present, nursery, retiring, entries
        self._adopt, self._log = adopt, log
        self._way: Way | None = None
        self._before: dict[str, tuple[object, ...]] = {}  # what the workers were made of when it began
        self._held = False  # all of them were drained then: new ones are, too

    @property
    def active(self) -> bool:
        """One is under way."""
        return self._way is not None

    def begin(self, wanted: Wanted, told: Told) -> None:
        """Call `turn` from now on."""
        assert self._way is None
        self._way = self._go(wanted, told)

    def turn(self) -> None:
        """One step, if there is one to take."""
        if self._way is not None:
            try:
                next(self._way)
            except StopIteration:
                self._way = None

    def abandon(self) -> None:
        """The daemon ends: whatever is under way is left as it is."""
        if self._way is not None:
            self._way.close()
            self._way = None

    def _go(self, wanted: Wanted, told: Told) -> Way:
        self._log.info("reloading", config=wanted.config.source)
        problem, workers = "", self._nursery.workers
        self._before = {slot.name: slot.born for slot in workers}
        self._held = bool(workers) and all(slot.held for slot in workers)
        try:
            yield from self._converge(wanted, told, forth=True)
            self._present, self._nursery.config = wanted, wanted.config
            self._adopt(wanted)
        except Stuck as stuck:
            problem = str(stuck)
            self._log.error("reload failed, going back", because=problem)
            told.step(f"{problem}: going back")
            try:
                yield from self._converge(self._present, told, forth=False)
            except Stuck as again:
                problem += f"; and on the way back: {again}"
        finally:
            self._unpark()
        self._log.info("reloaded") if not problem else self._log.error("reload rolled back", because=problem)
        told.end(problem)

    def _converge(self, wanted: Wanted, told: Told, *, forth: bool) -> Way:
        """To the new configuration, or back. On the way back, who was not touched stays, whatever its file is by now;
        who must start again, from a file that is another one now, must pass the canary of that."""
        specs = {spec.name: spec for spec in wanted.specs(self._entries)}
        for slot in [slot for slot in self._nursery.workers if slot.name not in specs]:
            told.step(f"{slot.name} leaves")
            yield from self._part_with(slot)
        for spec in specs.values():
            present, made, before = self._of(spec.name), makings(spec, wanted.config), self._before.get(spec.name)
            trial = forth or (before is not None and before != made)
            if present is None:
                yield from self._add(spec, wanted, told, trial)
            elif not forth and present.pid and present.born == before and present.spec.worker == spec.worker:
                continue
            elif present.born != made or present.spec.worker != spec.worker:
                yield from self._replace(present, spec, wanted, told, trial)
            elif present.status is SlotStatus.FAILED:
                self._try_again(present, told)
        for child in filter(None, (self._nursery.dispatcher, self._nursery.vectors)):
            if child.born != makings(child.spec, wanted.config):
                yield from self._renew(child, wanted, told)
            elif child.status is SlotStatus.FAILED:
                self._try_again(child, told)

    def _try_again(self, slot: Slot, told: Told) -> None:
        """Nobody waits for it: whether it lives now is its own affair, as it was."""
        told.step(f"{slot.name} had been given up, and is tried again")
        slot.another_chance()

    def _of(self, name: str) -> Slot | None:
        return next((slot for slot in self._nursery.workers if slot.name == name), None)

    def _add(self, spec: ChildSpec, wanted: Wanted, told: Told, trial: bool) -> Way:
        slot = self._nursery.add(spec)
        if slot is None:
            raise Stuck(f"{spec.name}: there is no row left on the board")
        told.step(f"{spec.name} starts")
        slot.held = self._held
        try:
            yield from self._bring_up(slot, wanted, trial)
        except Stuck:
            yield from self._part_with(slot)
            raise
        self._let_in(slot)

    def _replace(self, slot: Slot, spec: ChildSpec, wanted: Wanted, told: Told, trial: bool) -> Way:
        if self._side_by_side(slot, spec, wanted):
            told.step(f"{slot.name}: its successor starts, then it leaves")
            yield from self._add(spec, wanted, told, trial)
            self._nursery.workers[-1].held = slot.held
            yield from self._part_with(slot)
            return
        told.step(f"{slot.name} leaves, then its successor starts")
        slot.parked = True
        yield from self._empty(slot)
        slot.spec = replace(spec, row=slot.spec.row)
        yield from self._bring_up(slot, wanted, trial)
        self._let_in(slot)

    def _side_by_side(self, slot: Slot, spec: ChildSpec, wanted: Wanted) -> bool:
        """Whether the new one may live beside the old one for a while."""
        worker, row_free = spec.worker, len(self._nursery.workers) < self._nursery.rows
        if worker is None or worker.gpus or not row_free or not slot.pid:
            return False
        others = {core for each in self._nursery.workers if each.spec.worker for core in each.spec.worker.cores}
        if len(worker.cores) > 1 and others.intersection(worker.cores):
            return False
        return fits(wanted.config, [worker.model], slot.private_bytes)

    def _part_with(self, slot: Slot) -> Way:
        slot.parked = True
        yield from self._empty(slot)
        self._nursery.remove(slot)

    def _empty(self, slot: Slot) -> Way:
        """Until it has no process: its jobs end first."""
        give_up_s = time.monotonic() + self._retiring.config.daemon.drain_s + GRACE_S
        slot.recycling = slot.pid != 0
        while slot.pid and slot.status is SlotStatus.READY and slot.epoch and not slot.drained:
            if self._retiring.begin(slot, time.monotonic()) or time.monotonic() > give_up_s:
                break
            yield  # the dispatcher is away
        if not slot.retire_s:
            slot.kill(signal.SIGTERM, self._retiring.config.daemon.stop_s)
        while slot.pid:
            yield

    def _bring_up(self, slot: Slot, wanted: Wanted, trial: bool) -> Way:
        """Until its new process is ready."""
        before, since_s = slot.generation, time.monotonic()
        slot.parked, slot.trial, slot.due_s, slot.trouble = True, trial, 0.0, ""
        slot.target = wanted.config
        if slot.status in (SlotStatus.FAILED, SlotStatus.ASLEEP):
            slot.move("revive" if slot.status is SlotStatus.FAILED else "wake")
        while slot.generation == before:
            if time.monotonic() - since_s > START_S:
                raise Stuck(f"{slot.name}: it could not be started: {slot.trouble}")
            yield
        while slot.status is SlotStatus.STARTING:
            yield
        slot.trial = False
        if slot.status is SlotStatus.BACKOFF and slot.no_room and wanted.config.tiers[slot.tier].idle_unload_s:
            slot.move("slept")  # untried: somebody else has its GPU now
            return
        if slot.status is not SlotStatus.READY:
            said = (slot.last_error or {}).get("message") or exit_text(slot.last_exit)
            raise Stuck(f"{slot.name}: {said}")

    def _let_in(self, slot: Slot) -> None:
        """It may be linked; unless the dispatcher does not know its tier yet, which then is the next to be replaced."""
        known = self._nursery.dispatcher.config
        if known is None or slot.tier in known.enabled_tiers():
            slot.parked = False

    def _renew(self, slot: Slot, wanted: Wanted, told: Told) -> Way:
        """The dispatcher ends its jobs, or gives them back; vectors has nothing to end."""
        told.step(f"{slot.name} is replaced")
        slot.target = wanted.config
        if slot.spec.kind is Kind.VECTORS and slot.status is not SlotStatus.READY:
            slot.kill(signal.SIGTERM, self._retiring.config.daemon.stop_s)
            slot.another_chance()
            return  # the daemon goes on without it, before as after
        slot.parked = True
        daemon = self._retiring.config.daemon
        if slot.control is not None and slot.spec.kind is Kind.DISPATCHER:
            control.send(slot.control, {"do": "drain", "within_s": daemon.drain_s})
            slot.kill_s = time.monotonic() + daemon.drain_s + daemon.stop_s
        else:
            slot.kill(signal.SIGTERM, daemon.stop_s)
        while slot.pid:
            yield
        yield from self._bring_up(slot, wanted, trial=False)
        slot.parked = False

    def _unpark(self) -> None:
        slots: Sequence[Slot] = self._nursery.slots
        for slot in slots:
            slot.target = None
            if slot.parked:
                slot.parked = slot.trial = False
                slot.due_s = min(slot.due_s, time.monotonic())
