"""Supervisor · the children's mechanics: fork them, hear them, reap them. What deaths mean: supervisor.py.

Reaping is a sweep with WNOHANG over our own pids, after SIGCHLD and at every tick. It needs no descriptor a child, and
a pid that we have not reaped cannot belong to anybody else, so signalling it is safe.
"""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from metamusesd import control
from metamusesd.board import Board
from metamusesd.config import Config
from metamusesd.control import Birth
from metamusesd.log import Logger
from metamusesd.supervisor import redis_server
from metamusesd.supervisor.changes import makings
from metamusesd.supervisor.fork import fork, python_life
from metamusesd.supervisor.slot import Slot
from metamusesd.supervisor.spec import ChildSpec, Kind
from metamusesd.supervisor.state_dir import take_redis_lock

Heard = Callable[[Slot, dict[str, Any]], None]


class Nursery:
    """All slots of the family."""

    def __init__(
        self,
        config: Config,
        board: Board,
        specs: list[ChildSpec],
        instance: str,
        redis_program: Path | None,
        selector: selectors.BaseSelector,
        heard: Heard,
        log: Logger,
    ) -> None:
        self.config = config  # of whoever is started from now on
        self._board, self._instance, self._redis_program = board, instance, redis_program
        self._selector, self._heard, self._log = selector, heard, log
        self.slots = [Slot(spec, board.slots[spec.row] if spec.row >= 0 else None) for spec in specs]
        self.workers = [slot for slot in self.slots if slot.spec.kind is Kind.WORKER]
        self.dispatcher = next(slot for slot in self.slots if slot.spec.kind is Kind.DISPATCHER)
        self.vectors = next((slot for slot in self.slots if slot.spec.kind is Kind.VECTORS), None)
        self.redis = next((slot for slot in self.slots if slot.spec.kind is Kind.REDIS), None)
        for slot in self.slots:
            slot.publish()

    @property
    def rows(self) -> int:
        """How many workers there may be."""
        return self._board.rows

    @property
    def helpers(self) -> list[Slot]:
        """The dispatcher's."""
        return [*self.workers, *([self.vectors] if self.vectors else [])]

    def add(self, spec: ChildSpec) -> Slot | None:
        """One more worker, in the first free row; not started. None: all rows are taken."""
        taken = {slot.spec.row for slot in self.workers}
        row = next((row for row in range(self._board.rows) if row not in taken), None)
        if row is None:
            return None
        slot = Slot(replace(spec, row=row), self._board.slots[row])
        self.slots.append(slot)
        self.workers.append(slot)
        return slot

    def remove(self, slot: Slot) -> None:
        """A worker that has no process any more."""
        self.slots.remove(slot)
        self.workers.remove(slot)
        self._board.slots[slot.spec.row].clear()

    def start(self, slot: Slot) -> bool:
        """Fork it. False: not now (an older Redis still holds its lock); OSError: the system has no room for it."""
        return self._start_redis(slot) if slot.spec.kind is Kind.REDIS else self._start_python(slot)

    def sweep(self) -> Iterator[tuple[Slot, int]]:
        """Every child that has died, with its wait status, after its last words were heard."""
        for slot in self.slots:
            if slot.pid:
                pid, wait_status = os.waitpid(slot.pid, os.WNOHANG)
                if pid:
                    self._hear(slot, 0)
                    self._forget(slot)
                    yield slot, wait_status

    def kill_all(self) -> None:
        """The end, whatever the state: nobody is left behind."""
        for slot in self.slots:
            if slot.pid:
                slot.kill(9)
                os.waitpid(slot.pid, 0)
                self._forget(slot)

    def _start_python(self, slot: Slot) -> bool:
        spec, name, config = slot.spec, slot.name, slot.target or self.config
        born, log = makings(spec, config), slot.target.log if slot.target else None
        ours, theirs = control.pair()
        birth = Birth(
            name=name, config=config, board=self._board, control=theirs, instance=self._instance,
            generation=slot.generation + 1, row=spec.row, worker=spec.worker, trial=slot.trial,
        )  # fmt: skip
        cores = spec.worker.cores if spec.worker else ()
        try:
            pid = fork(
                python_life(spec.entry, birth, log),
                [theirs.fileno()],
                f"metamusesd: {name}",
                cores,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._selector.register(ours, selectors.EVENT_READ, partial(self._hear, slot))
        slot.config, slot.born = config, born
        slot.started(pid, ours)
        return True

    def _start_redis(self, slot: Slot) -> bool:
        assert self._redis_program is not None
        lock_fd = take_redis_lock(redis_server.directory(self.config))
        if lock_fd is None:
            return False
        try:
            configuration = redis_server.write_configuration(self.config)
            life = redis_server.redis_life(self._redis_program, configuration, lock_fd)
            slot.started(fork(life, [lock_fd], "metamusesd: redis"), None)
        finally:
            os.close(lock_fd)
        return True

    def _hear(self, slot: Slot, _events: int) -> None:
        """Read all that a child has said. EOF is left to the sweep: a death is one event, and it is the burial."""
        channel = slot.control
        while channel is not None:
            try:
                received = control.receive(channel)
            except BlockingIOError:
                return
            except (OSError, ValueError) as error:
                self._log.warning("garbage on a control channel", child=slot.name, problem=str(error))
                return
            if received is None:
                self._mute(slot)
                return
            message, fd = received
            if fd is not None:
                os.close(fd)
            if isinstance(message, dict):
                self._heard(slot, message)

    def _mute(self, slot: Slot) -> None:
        """At EOF: keep the channel, but do not watch it, or the loop spins until the burial."""
        if slot.control is not None and slot.control.fileno() in self._selector.get_map():
            self._selector.unregister(slot.control)

    def _forget(self, slot: Slot) -> None:
        self._mute(slot)
