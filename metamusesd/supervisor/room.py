"""Supervisor · whether there is memory for one more load: what it will take, against what can be had.

The supervisor asks no driver: a fork would inherit what the driver's library opens. Each worker writes on the board
what it wanted of its GPUs when it loaded, and how full they are; who sleeps is remembered. So the memory of a GPU is
known while a worker on it is awake; else the load finds out by itself (worker/vram.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from metamusesd.board import Board, SlotStatus
from metamusesd.config import Config, is_model
from metamusesd.models import size_of
from metamusesd.supervisor.slot import Slot

MARGIN_BYTES = 256 << 20  # left free
MIB = 1 << 20
Freed = Callable[[Slot], int]  # what comes back when that slot's process goes


def needed_bytes(config: Config, models: Iterable[str], private_bytes: int) -> int:
    """Each model's file once, since workers share it, what they have of their own, and the margin."""
    files = {config.model_path(config.models[name]) for name in models if config.models[name].file}
    return sum(size_of(path) for path in files if is_model(path)) + private_bytes + MARGIN_BYTES


@dataclass(frozen=True, slots=True)
class Shortage:
    """`missing` bytes of `what`, for somebody who needs so many."""

    what: str
    needed: int
    there: int
    freed: Freed

    @property
    def missing(self) -> int:
        return self.needed - self.there

    def __str__(self) -> str:
        return f"{self.what}: about {self.needed // MIB} MB are needed, {self.there // MIB} MB are available"


class Room:
    """For workers that sleep and want to come. `available`: bytes of main memory that a load may take; 0: unknown."""

    def __init__(self, config: Config, board: Board, workers: Sequence[Slot], available: Callable[[], int]) -> None:
        self.config = config
        self._board, self._workers, self._available = board, workers, available
        self._total: dict[tuple[str, ...], int] = {}  # of GPUs, as their workers once said

    def needs(self, slots: Sequence[Slot]) -> int:
        """Of main memory, with what they had of their own when they fell asleep. A model on a GPU is there alone."""
        workers = [slot.spec.worker for slot in slots if slot.spec.worker]
        models = [worker.model for worker in workers if worker.model in self.config.models and not worker.gpus]
        return needed_bytes(self.config, models, sum(slot.private_bytes for slot in slots))

    def shortage(self, slots: Sequence[Slot], coming: Sequence[Slot]) -> Shortage | None:
        """What keeps these from coming now, beside those that are on their way. None: nothing that is known."""
        needed, there = self.needs(slots), self._available()
        there = max(1, there - self.needs(coming)) if there and coming else there
        if there and needed > there:
            return Shortage("memory", needed, there, lambda slot: slot.private_bytes)
        for gpus in sorted({_gpus(slot) for slot in slots if _gpus(slot)}):
            if short := self._on_gpus(gpus, slots, coming):
                return short
        return None

    def remember(self, slot: Slot) -> None:
        """What it takes of its GPUs; call it now and then: its row will not be there when it sleeps."""
        fields = self._board.workers[slot.spec.row].read()
        if fields and fields["vram_wanted_bytes"]:
            slot.vram_bytes, self._total[_gpus(slot)] = fields["vram_wanted_bytes"], fields["vram_total_bytes"]

    def _on_gpus(self, gpus: tuple[str, ...], slots: Sequence[Slot], coming: Sequence[Slot]) -> Shortage | None:
        neighbours = [slot for slot in self._workers if slot.pid and set(_gpus(slot)) & set(gpus)]
        free = [each for slot in neighbours if (each := self._free_bytes(slot)) is not None]
        needed = sum(slot.vram_bytes for slot in slots if _gpus(slot) == gpus)
        taken = sum(slot.vram_bytes for slot in coming if set(_gpus(slot)) & set(gpus))
        there = min(free, default=self._total.get(gpus, 0) if taken else needed) - taken
        if needed <= there:
            return None
        return Shortage(
            f"GPU {' '.join(gpus)}", needed, max(0, there),
            lambda slot: self._wanted_bytes(slot) if slot in neighbours else 0,
        )  # fmt: skip

    def _free_bytes(self, slot: Slot) -> int | None:
        """Of the GPUs of a worker that is ready, by its own last look."""
        fields = self._board.workers[slot.spec.row].read() if slot.status is SlotStatus.READY else None
        if not fields or not fields["vram_total_bytes"]:
            return None
        return fields["vram_total_bytes"] - fields["vram_used_bytes"]

    def _wanted_bytes(self, slot: Slot) -> int:
        fields = self._board.workers[slot.spec.row].read()
        return fields["vram_wanted_bytes"] if fields else 0


def _gpus(slot: Slot) -> tuple[str, ...]:
    return slot.spec.worker.gpus if slot.spec.worker else ()
