"""Supervisor · what an operator may order while the daemon runs: reload, drain, undrain.

reload            read the configuration again, check all of it, replace what differs (reload.py)
drain [worker]    it gets no more jobs; those that it has end, or are given back unburnt; it stays loaded
undrain [worker]  it gets jobs again
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from metamusesd.board import Board
from metamusesd.config import Config, missing_models
from metamusesd.errors import ConfigError
from metamusesd.log import Logger
from metamusesd.supervisor.changes import needs_restart
from metamusesd.supervisor.cpus import usable_cores
from metamusesd.supervisor.door import Caller
from metamusesd.supervisor.measured import core_rates
from metamusesd.supervisor.nursery import Nursery
from metamusesd.supervisor.placement import model_sizes, place
from metamusesd.supervisor.reload import Reload, Told, Wanted
from metamusesd.supervisor.retire import Retiring
from metamusesd.supervisor.slot import Slot
from metamusesd.supervisor.systemd import Notifier
from metamusesd.supervisor.weights import tell_weights


@dataclass(slots=True)
class Orders:
    """`load` reads the configuration as the start did; `present` says what is in force; `running`: not when the daemon
    starts or ends."""

    nursery: Nursery
    board: Board
    retiring: Retiring
    reload: Reload
    notifier: Notifier
    log: Logger
    load: Callable[[], Config] | None
    present: Callable[[], Config]
    running: Callable[[], bool]
    again: bool = False  # a signal came while a reload was under way
    waiting: tuple[tuple[Caller, tuple[Slot, ...]], ...] = ()  # for a drain
    reloads: Counter[str] = field(default_factory=Counter)  # by outcome: done, rolled_back, refused; for the metrics

    def obey(self, message: dict[str, Any], caller: Caller) -> None:
        """One order, from the control socket."""
        do, worker = message.get("do"), message.get("worker")
        if not self.running():
            caller.refuse("busy", "the daemon starts or ends: try again when it runs")
        elif do == "reload":
            self._reload(caller)
        elif do not in ("drain", "undrain"):
            caller.refuse("invalid_request", f"do: {do!r} is no order; use reload, drain or undrain")
        elif not (slots := self._named(worker)):
            known = ", ".join(slot.name for slot in self.nursery.workers)
            caller.refuse("invalid_request", f"worker: there is no {worker!r}; use one of {known}")
        elif do == "drain":
            self._drain(slots, caller, wait=message.get("wait") is True)
        else:
            self._undrain(slots, caller)

    def reload_signal(self) -> None:
        """SIGHUP: the same as the order; what comes of it stands in the log."""
        if self.reload.active or not self.running():
            self.again = True  # when that is over, or when the daemon runs
        else:
            self._reload(None)

    def turn(self, now_s: float) -> None:
        """What takes longer than one moment."""
        self.retiring.turn(now_s)
        self.reload.turn()
        if self.again and not self.reload.active and self.running():
            self.again = False
            self._reload(None)
        for caller, slots in self.waiting:
            if all(slot.drained or slot not in self.nursery.workers for slot in slots):
                caller.end("drained")
        self.waiting = tuple(each for each in self.waiting if each[0].peer is not None)

    def _reload(self, caller: Caller | None) -> None:
        if self.reload.active:
            if caller is not None:
                caller.refuse("busy", "a reload is under way: wait for its end")
            return
        try:
            wanted = self._wanted()
        except (ConfigError, OSError) as error:
            mistakes = error.mistakes if isinstance(error, ConfigError) else [str(error)]
            self.reloads["refused"] += 1
            for mistake in mistakes:
                self.log.error("configuration refused, the present one stays", problem=mistake)
            if caller is not None:
                caller.refuse("bad_config", *mistakes)
            return
        tell_weights(wanted.config, self.log)
        self.notifier.reloading()
        self.reload.begin(wanted, Told(self._step(caller), self._ended(caller)))

    def _wanted(self) -> Wanted:
        """Raises ConfigError with everything that would be refused."""
        if self.load is None:
            raise ConfigError(["this daemon was started without a way to read its configuration again"])
        config = self.load()
        if mistakes := [*needs_restart(self.present(), config), *missing_models(config)]:
            raise ConfigError(mistakes)
        return Wanted(config, place(config, usable_cores(), model_sizes(config), core_rates(config)))

    def _step(self, caller: Caller | None) -> Callable[[str], None]:
        def step(text: str) -> None:
            self.log.info("reload", step=text)
            if caller is not None:
                caller.step(text)

        return step

    def _ended(self, caller: Caller | None) -> Callable[[str], None]:
        def end(problem: str) -> None:
            self.notifier.reloaded()
            self.reloads["rolled_back" if problem else "done"] += 1
            if caller is not None and problem:
                caller.refuse("reload_failed", f"{problem}; the configuration before it is in force")
            elif caller is not None:
                caller.end("reloaded")

        return end

    def _named(self, worker: object) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.nursery.workers if worker is None or slot.name == worker)

    def _drain(self, slots: tuple[Slot, ...], caller: Caller, wait: bool) -> None:
        for slot in slots:
            if not slot.held:
                slot.held = True
                self.log.info("draining", child=slot.name)
            jobs = self.board.workers[slot.spec.row].get("slots_used")
            caller.step(f"{slot.name}: " + ("drained" if slot.drained else f"{jobs} jobs to end"))
        if wait:
            self.waiting = (*self.waiting, (caller, slots))
        else:
            caller.end("draining")

    def _undrain(self, slots: tuple[Slot, ...], caller: Caller) -> None:
        for slot in slots:
            if slot.held:
                self.retiring.resume(slot)
                self.log.info("undrained", child=slot.name)
                caller.step(f"{slot.name} gets jobs again")
        caller.end("undrained")
