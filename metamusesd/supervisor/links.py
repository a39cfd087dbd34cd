"""Supervisor · a fresh pipe for every pair of a living worker and a living dispatcher.

Each life of a pair is an epoch with its own socketpair. One end goes to the worker and one to the dispatcher, both
over their control sockets; the supervisor closes its copies at once, so that EOF on the pipe means the death of the
other side.
"""

from __future__ import annotations

import socket

from metamusesd import control
from metamusesd.supervisor.coroner import Death
from metamusesd.supervisor.slot import Slot


class Links:
    """Numbers the epochs. Epochs only grow, over all pairs, from 1."""

    def __init__(self) -> None:
        self.epoch = 0

    def join(self, worker: Slot, dispatcher: Slot) -> bool:
        """Give both a new pipe. False: not now; one of them is gone or takes no messages. Call again later."""
        assert worker.spec.worker is not None
        if worker.control is None or dispatcher.control is None:
            return False
        try:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError:
            return False  # out of descriptors
        self.epoch += 1
        spec = worker.spec.worker
        message = {"do": "link", "row": worker.spec.row, "epoch": self.epoch, "worker": spec.name, "tier": spec.tier}
        with near, far:
            told = control.send(dispatcher.control, message, near.fileno())
            told = told and control.send(worker.control, message, far.fileno())
        if told:
            worker.epoch = self.epoch
        return told


def part(worker: Slot, dispatcher: Slot, epoch: int, pid: int, death: Death) -> None:
    """Tell the dispatcher that this worker died, and how. Call it after the burial."""
    if dispatcher.control is not None and epoch:
        message = {"do": "unlink", "row": worker.spec.row, "epoch": epoch, "exit": death.exit}
        message |= {"hung": bool(death.hung), "killed": death.killed, "evidence": death.evidence(worker.name, pid)}
        control.send(dispatcher.control, message)
