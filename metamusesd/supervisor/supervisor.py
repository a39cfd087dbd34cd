"""Supervisor · the parent of all: starts the family, keeps it alive, ends it in order. One thread, standard library.

    STARTING ──redis ready──► RUNNING ──SIGTERM, or nothing left to run──► DRAINING ──dispatcher gone──► STOPPING
    ──workers gone──► CLOSING ──redis gone──► the exit code.      Health is answered in every phase, by this loop.

The loop waits for signals, control messages and health clients, and at every turn: buries the dead and decides what
follows, looks for the hung, starts what is due, insists where asking did not help, moves to the next phase, tells
systemd.
"""

from __future__ import annotations

import enum
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from metamusesd import control
from metamusesd.board import MAX_ROWS, Board, SlotStatus
from metamusesd.config import Config, missing_models
from metamusesd.control import EXIT_BAD_CONFIG, EXIT_BOOT, EXIT_DIED
from metamusesd.errors import ConfigError
from metamusesd.log import flush, get_logger, obey, tick
from metamusesd.supervisor import redis_server, semantic
from metamusesd.supervisor.burial import Burial
from metamusesd.supervisor.cpus import usable_cores
from metamusesd.supervisor.door import ControlDoor
from metamusesd.supervisor.guard import Guard
from metamusesd.supervisor.health import Answer, HealthServer
from metamusesd.supervisor.herald import Herald
from metamusesd.supervisor.links import Links
from metamusesd.supervisor.listeners import open_listeners
from metamusesd.supervisor.measured import core_rates
from metamusesd.supervisor.nursery import Nursery
from metamusesd.supervisor.orders import Orders
from metamusesd.supervisor.placement import Placement, model_sizes, place
from metamusesd.supervisor.proc import kernel_sight
from metamusesd.supervisor.recycle import Recycling
from metamusesd.supervisor.reload import Reload, Wanted
from metamusesd.supervisor.report import Reporter
from metamusesd.supervisor.retire import Retiring
from metamusesd.supervisor.seats import Seats
from metamusesd.supervisor.signals import Signals
from metamusesd.supervisor.sleep import Sleeping
from metamusesd.supervisor.slot import Slot
from metamusesd.supervisor.spec import Entries, Kind, child_specs
from metamusesd.supervisor.state_dir import Home, open_home
from metamusesd.supervisor.systemd import Notifier
from metamusesd.supervisor.weights import tell_weights

BOOT_TICK_S = 0.02  # while Redis comes up
VECTORS_WAIT_S = 3.0  # so long at most for the workers' models
RETRY_S = 0.1  # a start that was not possible is tried again
ABORT_S = 2.0  # between SIGABRT, for the stacks, and SIGKILL
REDIS_STOP_S = 10.0  # to write its file out


class Phase(enum.Enum):
    """Of the whole daemon, in this order."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"
    CLOSING = "closing"


def run(config: Config, load: Callable[[], Config] | None = None, **entries: str) -> int:
    """Be the daemon until it ends; returns the exit code. Call it on the main thread, without other threads. `load`
    reads the configuration again, for a reload; `entries`: other modules than spec.Entries', for tests."""
    log = get_logger("supervisor")
    try:
        if missing := missing_models(config):
            raise ConfigError(missing)
        placement = place(config, usable_cores(), model_sizes(config), core_rates(config))
        home = open_home(config)
        supervisor = Supervisor(config, placement, home, Entries(**entries), load)
    except ConfigError as error:
        for mistake in error.mistakes:
            log.error(mistake)
        return EXIT_BAD_CONFIG
    except OSError as error:  # no room in the state directory, no memory for the board
        log.error("the daemon cannot start", problem=str(error))
        return EXIT_BOOT
    return supervisor.run()


class Supervisor:
    """The parent. `run` once."""

    def __init__(
        self, config: Config, placement: Placement, home: Home, entries: Entries, load: Callable[[], Config] | None
    ) -> None:
        self._config, self._home = config, home
        self._log = get_logger("supervisor")
        self._selector = selectors.DefaultSelector()
        self._signals, self._notifier, self._links = Signals(), Notifier(), Links()
        self._board = Board(MAX_ROWS)
        program = redis_server.program_for(config)
        missing = semantic.what_is_missing(config)
        has_vectors = semantic.is_wanted(config) and not missing
        specs = child_specs(placement.workers, entries, redis=program is not None, vectors=has_vectors)
        self._nursery = Nursery(
            config, self._board, specs, home.instance, program, self._selector, self._heard, self._log
        )
        self._reporter = Reporter(
            config, self._board, self._nursery.slots, time.monotonic(), placement=placement.lines, missing=missing
        )
        self._guard = Guard(self._board, config.daemon)
        self._reporter.patience_s, self._reporter.cpu_s = self._guard.patience_s, self._guard.cpu_s
        self._herald = Herald(self._notifier, self._reporter, config.daemon.hang_s + ABORT_S)
        workers, dispatcher = self._nursery.workers, self._nursery.dispatcher
        self._retiring = Retiring(config, workers, dispatcher, self._log)
        self._recycling = Recycling(config, workers, self._retiring, self._log)
        self._sleeping = Sleeping(config, self._board, workers, dispatcher, self._retiring, self._log)
        self._seats = Seats(self._log)
        self._reporter.waits, self._reporter.misplaced = self._sleeping.waits, self._seats.complaints
        self._burial = Burial(config, self._board, self._nursery, self._retiring, self._doomed, self._log)
        self._reporter.exits = self._burial.coroner.exits
        self._reload = Reload(
            Wanted(config, placement), self._nursery, self._retiring, entries, self._adopt, self._log
        )  # fmt: skip
        self._orders = Orders(
            self._nursery, self._board, self._retiring, self._reload, self._notifier, self._log, load,
            lambda: self._config, lambda: self._phase is Phase.RUNNING,
        )  # fmt: skip
        self._reporter.reloads = self._orders.reloads
        self._phase = Phase.STARTING
        self._code = 0
        self._ended = False

    def run(self) -> int:
        """The whole life of the daemon."""
        self._signals.open()
        self._selector.register(self._signals.reader, selectors.EVENT_READ, lambda _events: None)
        health = door = None
        try:
            listeners = open_listeners(self._config, self._notifier, self._log)
            health = HealthServer(listeners, self._selector, self._answer)
            door = ControlDoor(self._config.control_socket, self._selector, self._orders.obey, self._log)
            self._introduce()
            while not self._ended:
                self._wait()
                self._obey()
                self._bury_the_dead()
                self._look_for_the_hung()
                self._recycle()
                self._start_the_due()
                self._join_pairs()
                self._insist()
                self._move_on()
                self._tell()
                health.sweep()
                door.sweep()
            code = self._code or self._burial.code
            self._log.info("stopped", exit=code)
            flush()
            return code
        except OSError as error:
            self._log.error("the supervisor cannot go on", problem=str(error))
            return EXIT_DIED if self._phase is not Phase.STARTING else EXIT_BOOT
        finally:
            self._nursery.kill_all()
            if health is not None:
                health.close()
            if door is not None:
                door.close()
            self._signals.close()
            self._notifier.close()
            self._selector.close()
            self._home.close()

    # the turns of the loop

    def _wait(self) -> None:
        for key, events in self._selector.select(self._patience_s()):
            key.data(events)

    def _patience_s(self) -> float:
        """Until something falls due, at most a tick."""
        now_s = time.monotonic()
        due = [slot.due_s for slot in self._nursery.slots if slot.status is SlotStatus.BACKOFF]
        due += [slot.kill_s for slot in self._nursery.slots if slot.kill_s]
        resting_s = self._guard.rest_s(self._nursery.slots)
        due.append(now_s + (BOOT_TICK_S if self._phase is Phase.STARTING else resting_s))
        return max(0.0, min(due) - now_s)

    def _obey(self) -> None:
        for signum in self._signals.take():
            name = signal.Signals(signum).name
            if signum == signal.SIGHUP:
                self._orders.reload_signal()
            elif self._phase in (Phase.STARTING, Phase.RUNNING):
                self._log.info("stopping", signal=name, drain_s=self._config.daemon.drain_s)
                self._stop(0, self._config.daemon.drain_s)
            else:
                self._hurry(name)

    def _bury_the_dead(self) -> None:
        for slot, wait_status in self._nursery.sweep():
            self._burial.bury(slot, wait_status, going_on=self._phase in (Phase.STARTING, Phase.RUNNING))

    def _look_for_the_hung(self) -> None:
        now_s = time.monotonic()
        for slot in self._nursery.slots:
            if reason := self._guard.hung(slot, now_s):
                self._abort(slot, reason)

    def _recycle(self) -> None:
        now_s = time.monotonic()
        self._burial.coroner.count(now_s)
        if self._phase is Phase.RUNNING:
            self._recycling.turn(now_s)
            self._orders.turn(now_s)
            self._sleeping.turn(now_s)
            self._seats.look(self._nursery.workers, now_s)

    def _start_the_due(self) -> None:
        """Redis first; the others as soon as it has answered once, and never again because of it."""
        now_s = time.monotonic()
        for slot in self._nursery.slots:
            may = self._phase is Phase.RUNNING or (self._phase is Phase.STARTING and slot.spec.kind is Kind.REDIS)
            may = may and not self._waits_for_workers(slot, now_s)
            if may and slot.status in (SlotStatus.UNUSED, SlotStatus.BACKOFF) and now_s >= slot.due_s:
                self._start(slot, now_s)
        redis = self._nursery.redis
        if (
            redis is not None
            and redis.status is SlotStatus.STARTING
            and redis_server.is_ready(self._config.redis_socket)
        ):
            redis.ready()
            self._log.info("redis is ready", pid=redis.pid, socket=str(self._config.redis_socket))

    def _waits_for_workers(self, slot: Slot, now_s: float) -> bool:
        """Vectors, at first: models load sooner without its imports beside them, and meanwhile lookups are misses."""
        if slot.spec.kind is not Kind.VECTORS or slot.generation or now_s - slot.since_s > VECTORS_WAIT_S:
            return False
        return any(worker.status in (SlotStatus.UNUSED, SlotStatus.STARTING) for worker in self._nursery.workers)

    def _join_pairs(self) -> None:
        if self._phase is Phase.RUNNING:
            self._links.join_all(self._nursery)

    def _insist(self) -> None:
        now_s = time.monotonic()
        for slot in self._nursery.slots:
            if slot.pid and slot.kill_s and now_s >= slot.kill_s:
                self._log.warning("killing a child that does not leave", child=slot.name, pid=slot.pid)
                slot.kill(signal.SIGKILL)
                slot.kill_s = now_s + ABORT_S

    def _move_on(self) -> None:
        """To the next phase, when the present one has nothing left to wait for."""
        nursery, redis = self._nursery, self._nursery.redis
        if self._phase is Phase.STARTING and (redis is None or redis.status is SlotStatus.READY):
            self._enter(Phase.RUNNING)
            self._start_the_due()
        if self._phase is Phase.DRAINING and not nursery.dispatcher.pid:
            self._enter(Phase.STOPPING)
            self._ask_to_leave(nursery.helpers, self._config.daemon.stop_s)
        if self._phase is Phase.STOPPING and not any(slot.pid for slot in nursery.helpers):
            self._enter(Phase.CLOSING)
            self._ask_to_leave([redis] if redis else [], REDIS_STOP_S)
        if self._phase is Phase.CLOSING and not (redis and redis.pid):
            self._ended = True

    def _tell(self) -> None:
        ready = self._phase is Phase.RUNNING and not self._reporter.reasons()
        busy = not ready or self._reload.active
        self._herald.tell(ready, busy, self._nursery.dispatcher.status is not SlotStatus.READY)
        tick()

    # what the turns do

    def _start(self, slot: Slot, now_s: float) -> None:
        try:
            started = self._nursery.start(slot)
        except OSError as error:
            if slot.trouble != str(error):
                slot.trouble = str(error)
                self._log.error("a child could not be started", child=slot.name, problem=str(error))
            started = False
        if started:
            self._guard.forget(slot)
            slot.trouble = ""
            self._log.info("started", child=slot.name, pid=slot.pid, generation=slot.generation)
            return
        slot.due_s = now_s + RETRY_S
        needed = slot.spec.kind is not Kind.VECTORS and not (slot.ever_ready or slot.parked)
        if needed and now_s - slot.since_s > self._config.daemon.boot_s:
            self._log.error("a child could not be started in time", child=slot.name)
            self._stop(EXIT_BOOT, 0.0)

    def _heard(self, slot: Slot, message: dict[str, Any]) -> None:
        """A child spoke."""
        if message.get("say") == "ready" and slot.status in (SlotStatus.STARTING, SlotStatus.STOPPING):
            slot.ready()
            self._log.info("ready", child=slot.name, after_s=round(time.monotonic() - slot.started_s, 2))
        elif message.get("say") == "failed":
            error = message.get("error")
            slot.last_error = error if isinstance(error, dict) else {"message": str(error)}
            slot.permanent = message.get("permanent") is True
        elif message.get("say") == "relink":
            self._relink(slot, message.get("epoch"))
        elif message.get("say") == "relink vectors" and self._nursery.vectors is not None:
            self._relink(self._nursery.vectors, message.get("epoch"))
        elif message.get("say") == "trouble" and slot.spec.kind is Kind.VECTORS:
            slot.trouble = str(message.get("problem", ""))
        elif message.get("say") == "wanted":
            self._sleeping.wanted(message.get("tier"))
        elif message.get("say") == "retired":
            self._retiring.retired(message.get("row"), message.get("epoch"))

    def _relink(self, slot: Slot, epoch: object) -> None:
        """The next turn of the loop makes a new pipe. A stale wish names an older epoch."""
        if epoch == slot.epoch:
            slot.epoch = 0
            self._retiring.parted(slot)

    def _adopt(self, wanted: Wanted) -> None:
        """Another configuration is in force."""
        config = self._config = wanted.config
        obey(config.log)
        self._retiring.config = self._recycling.config = self._sleeping.config = self._reporter.config = config
        self._reporter.placement = wanted.placement.lines
        self._guard.adopt(config.daemon)
        self._burial.adopt(config)
        self._herald.patience_s = config.daemon.hang_s + ABORT_S

    def _doomed(self, code: int) -> None:
        self._stop(code, 0.0)

    def _abort(self, slot: Slot, reason: str) -> None:
        """The child is hung: let it print its stacks, then kill it. A stopped one could print them only if it went on,
        and then it would go on with its work as well."""
        slot.hung = reason
        self._log.error("child is hung", child=slot.name, pid=slot.pid, because=reason)
        slot.was_stopped = kernel_sight(slot.pid).state in "Tt"
        slot.kill(signal.SIGKILL if slot.was_stopped else signal.SIGABRT, ABORT_S)

    def _stop(self, code: int, within_s: float) -> None:
        """Begin the end. The dispatcher goes first, then the workers and vectors, Redis last."""
        if self._phase not in (Phase.STARTING, Phase.RUNNING):
            return
        self._code = code
        self._reload.abandon()
        self._enter(Phase.DRAINING)
        self._notifier.stopping()
        for slot in self._nursery.slots:
            if not slot.pid:
                slot.move("stop")
        dispatcher = self._nursery.dispatcher
        if dispatcher.control is not None:
            dispatcher.move("stop")
            if control.send(dispatcher.control, {"do": "drain", "within_s": within_s}):
                deadline_s = time.monotonic() + within_s + self._config.daemon.stop_s
                dispatcher.kill_s = min(dispatcher.kill_s or deadline_s, deadline_s)
            else:
                dispatcher.kill(signal.SIGTERM, self._config.daemon.stop_s)

    def _hurry(self, name: str) -> None:
        """A second signal: nobody is asked again, but Redis, which is asked once and then killed as well."""
        self._log.warning("stopping at once", signal=name)
        closing = self._phase is Phase.CLOSING
        for slot in self._nursery.slots:
            if slot.spec.kind is not Kind.REDIS or closing:
                slot.kill(signal.SIGKILL)

    def _ask_to_leave(self, slots: Sequence[Slot], within_s: float) -> None:
        for slot in slots:
            slot.move("stop")
            slot.kill(signal.SIGTERM, within_s)

    def _enter(self, phase: Phase) -> None:
        self._phase, self._reporter.phase = phase, phase.value

    # the rest

    def _introduce(self) -> None:
        where = {"state_dir": str(self._config.state_dir), "health": str(self._config.health_socket)}
        self._log.info("starting", config=self._config.source, **where)
        for reason in self._reporter.placement:
            self._log.info(reason)
        tell_weights(self._config, self._log)
        if self._reporter.missing:
            self._log.warning(self._reporter.degraded()[0])

    def _answer(self, path: str) -> Answer | None:
        """Health. Whatever the board says, this must not end the supervisor."""
        try:
            return self._reporter.answer(path)
        except Exception as error:
            self._log.error("health could not be told", path=path, problem=repr(error))
            return Answer(500, '{"error": "internal error"}\n')
