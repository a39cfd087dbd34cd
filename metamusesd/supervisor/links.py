"""Supervisor · a fresh pipe for every pair of a dispatcher and a worker, or of a dispatcher and vectors, that live.

Each life of a pair is an epoch with its own socketpair. One end goes to the dispatcher and one to the other, both over
their control sockets; the supervisor closes its copies at once, so that EOF on the pipe means the death of the other
side. A worker's first pipe waits for it while it loads; vectors gets one when it is ready, so that nobody waits for
answers that cannot come yet.
"""

from __future__ import annotations

import socket
from typing import Any

from metamusesd import control
from metamusesd.board import SlotStatus
from metamusesd.supervisor.coroner import Death
from metamusesd.supervisor.nursery import Nursery
from metamusesd.supervisor.slot import Slot


class Links:
    """Numbers the epochs. Epochs only grow, over all pairs, from 1."""

    def __init__(self) -> None:
        self.epoch = 0

    def join_all(self, nursery: Nursery) -> None:
        """A pipe for everybody who has none and should. Call it at every turn: what cannot be now is done later."""
        for worker in nursery.workers:
            if worker.epoch == 0 and not (worker.recycling or worker.held or worker.parked):
                self.join(worker, nursery.dispatcher)
        vectors = nursery.vectors
        if vectors is not None and vectors.epoch == 0 and vectors.status is SlotStatus.READY:
            self.join(vectors, nursery.dispatcher)

    def join(self, child: Slot, dispatcher: Slot) -> bool:
        """Give both a new pipe. False: not now; one of them is gone or takes no messages. Call again later."""
        if child.control is None or dispatcher.control is None:
            return False
        try:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            return False  # out of descriptors
        self.epoch += 1
        message = _introduction(child) | {"epoch": self.epoch}
        with near, far:
            told = control.send(dispatcher.control, message, near.fileno())
            told = told and control.send(child.control, message, far.fileno())
        if told:
            child.epoch = self.epoch
        return told


def _introduction(child: Slot) -> dict[str, Any]:
    """As control.py draws it, without the epoch."""
    if (spec := child.spec.worker) is None:
        return {"do": "vectors"}
    return {"do": "link", "row": child.spec.row, "worker": spec.name, "tier": spec.tier}


def part(worker: Slot, dispatcher: Slot, epoch: int, pid: int, death: Death) -> None:
    """Tell the dispatcher that this worker died, and how. Call it after the burial."""
    if dispatcher.control is not None and epoch:
        message = {"do": "unlink", "row": worker.spec.row, "epoch": epoch, "exit": death.exit}
        message |= {"hung": bool(death.hung), "killed": death.killed, "evidence": death.evidence(worker.name, pid)}
        control.send(dispatcher.control, message)
