"""Supervisor · what the death of a child means: for its neighbours, for its slot, for the daemon."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from math import inf
from typing import Any

from metamusesd.board import Board, SlotStatus
from metamusesd.config import Config
from metamusesd.control import EXIT_DIED
from metamusesd.log import Logger
from metamusesd.supervisor import redis_server, restart, semantic
from metamusesd.supervisor.coroner import Coroner
from metamusesd.supervisor.evidence import Evidence
from metamusesd.supervisor.links import part
from metamusesd.supervisor.nursery import Nursery
from metamusesd.supervisor.retire import Retiring
from metamusesd.supervisor.slot import Slot, exit_code_of
from metamusesd.supervisor.spec import Kind


class Burial:
    """Of every child. `stop`: told the exit code when there is nothing left to run."""

    def __init__(
        self, config: Config, board: Board, nursery: Nursery, retiring: Retiring, stop: Callable[[int], None],
        log: Logger,
    ) -> None:  # fmt: skip
        self.coroner = Coroner(board, Evidence(config.evidence_dir))
        self.code = 0  # the daemon's, when a death at the end of its life changes it
        self._board, self._nursery, self._retiring, self._stop, self._log = board, nursery, retiring, stop, log
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Another configuration from now on."""
        self._config, self._budget = config, restart.policy(config.daemon)

    def bury(self, slot: Slot, wait_status: int, *, going_on: bool) -> None:
        """It has been reaped. `going_on`: the daemon is not about to end, so that somebody may follow it."""
        pid, epoch, death = slot.pid, slot.epoch, self.coroner.examine(slot, wait_status)
        slot.buried(wait_status, death.explained)
        if slot.spec.kind is Kind.REDIS and (words := redis_server.last_words(self._config, slot.last_exit)):
            slot.last_error = {"message": words}
        said = (slot.last_error or {}).get("message")
        if slot.spec.kind is Kind.WORKER:
            self._board.workers[slot.spec.row].clear()  # its writer is dead; nobody else may
            part(slot, self._nursery.dispatcher, epoch, pid, death)
        elif slot.spec.kind is Kind.VECTORS:
            self._board.vectors.clear()  # EOF tells the dispatcher
        elif slot.spec.kind is Kind.DISPATCHER:
            self._part_all()
        facts = {"child": slot.name, "pid": pid} | death.facts() | ({"said": said} if said else {})
        if going_on:
            self._follow(slot, facts)
            return
        self._log.info("gone", **facts)
        if slot.spec.kind is Kind.DISPATCHER and slot.last_exit != 0 and self.code == 0:
            self._log.warning("the dispatcher left without draining; the next start takes its jobs back")
            self.code = EXIT_DIED
        slot.move("stop")
        slot.move("died")

    def _part_all(self) -> None:
        """The dispatcher died: what it wrote is cleared, and no worker owes it anything."""
        self._board.dispatcher.clear()
        if self._nursery.vectors is not None:
            self._nursery.vectors.epoch = 0
        for worker in self._nursery.workers:
            worker.epoch = 0
            self._board.reset_frames_sent(worker.spec.row)
            self._retiring.parted(worker)

    def _follow(self, slot: Slot, facts: dict[str, Any]) -> None:
        """Who comes after it, and when."""
        now_s = time.monotonic()
        if slot.sleeping and slot.status is SlotStatus.READY and not slot.parked:
            slot.sleeping = False
            slot.move("slept")
            self._log.info("asleep", **facts)
            return
        if slot.parked or slot.recycling:
            slot.due_s = inf if slot.parked else now_s
            slot.move("died")
            self._log.info("replaced" if slot.parked else "recycled", **facts)
            return
        if slot.no_room and self._config.tiers[slot.tier].idle_unload_s and slot.status is SlotStatus.STARTING:
            slot.move("slept")
            self._log.info("asleep until it is wanted: its GPU is full", **facts)
            return
        verdict = restart.decide(
            self._budget, slot.deaths, permanent=slot.permanent, boot_deaths=slot.boot_deaths,
            keep=slot.spec.kind is Kind.REDIS and slot.ever_ready,
            chance=random.random(),  # noqa: S311 - jitter, no secret
        )  # fmt: skip
        if isinstance(verdict, restart.Again):
            slot.due_s = now_s + verdict.after_s
            slot.move("died")
            self._log.warning("child died", **facts, restart_in_s=round(verdict.after_s, 3))
            return
        slot.move("given up")
        self._log.error("child given up", **facts, because=verdict.reason)
        if slot.spec.kind is Kind.VECTORS and not semantic.refuses_to_start(slot):
            return  # the daemon goes on without it
        doomed = self._nursery.workers if slot.spec.kind is Kind.WORKER else [slot]
        if all(each.status is SlotStatus.FAILED for each in doomed):
            self._stop(exit_code_of(doomed))
