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
from metamusesd.supervisor.proc import available_bytes
from metamusesd.supervisor.slot import Slot

MARGIN_BYTES = 256 << 20  # left free
STALE_S = 3.0  # so old may be what a board row says of a GPU
LOADING = (SlotStatus.STARTING, SlotStatus.BACKOFF)
MIB = 1 << 20
Freed = Callable[[Slot], int]  # what comes back when that slot's process goes


def file_bytes(config: Config, models: Iterable[str], *, droppable: bool = False) -> int:
    """Of the models' files, each once, since workers share them; of those alone whose pages are not locked."""
    found = [config.models[name] for name in models]
    files = {config.model_path(model) for model in found if model.file and not (droppable and model.mlock)}
    return sum(size_of(path) for path in files if is_model(path))


def fits(config: Config, models: Sequence[str], private_bytes: int) -> bool:
    """Whether there is memory for workers that have so much of their own. Unknown: no."""
    needed = file_bytes(config, models) + private_bytes + MARGIN_BYTES
    return needed <= available_bytes(file_bytes(config, models, droppable=True))


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
    """For workers that sleep and want to come. `available`: bytes of main memory that a load may take, so many of
    them a file's (see proc.available_bytes); 0: unknown."""

    def __init__(self, config: Config, board: Board, workers: Sequence[Slot], available: Callable[[int], int]) -> None:
        self.config = config
        self._board, self._workers, self._available = board, workers, available

    def needs(self, slots: Sequence[Slot]) -> int:
        """Of main memory, with what they had of their own when they fell asleep. A model on a GPU is there alone."""
        return self._files(slots) + sum(slot.private_bytes for slot in slots) + MARGIN_BYTES

    def _files(self, slots: Sequence[Slot], *, droppable: bool = False) -> int:
        workers = [slot.spec.worker for slot in slots if slot.spec.worker]
        models = [worker.model for worker in workers if worker.model in self.config.models and not worker.gpus]
        return file_bytes(self.config, models, droppable=droppable)

    def fitting(
        self, slots: Sequence[Slot], coming: Sequence[Slot], now_s: float
    ) -> tuple[list[Slot], Shortage | None]:
        """Which of these may come now, beside those that are on their way; if none, what keeps them, as far as known:
        those on one GPU wait for it, the others come."""
        needed, there = self.needs(slots), self._available(self._files([*slots, *coming], droppable=True))
        there = max(1, there - self.needs(coming)) if there and coming else there
        if there and needed > there:
            return [], Shortage("memory", needed, there, lambda slot: slot.private_bytes)
        places = sorted({gpus_of(slot) for slot in slots})
        short = {gpus: self.on_gpus(gpus, slots, now_s) for gpus in places}
        return [slot for slot in slots if short[gpus_of(slot)] is None], next(filter(None, short.values()), None)

    def remember(self, slot: Slot) -> None:
        """What it takes of its GPUs; call it now and then: its row will not be there when it sleeps."""
        fields = self._board.workers[slot.spec.row].read()
        if fields and fields["vram_wanted_bytes"]:
            slot.vram_bytes = fields["vram_wanted_bytes"]

    def on_gpus(self, gpus: tuple[str, ...], slots: Sequence[Slot], now_s: float) -> Shortage | None:
        """What keeps those of `slots` that are on these GPUs. Only who is ready there knows how full they are; while
        somebody loads there, or has just left, what he knows is not true for long."""
        neighbours = [slot for slot in self._workers if slot not in slots and set(gpus_of(slot)) & set(gpus)]
        if not gpus or not neighbours:
            return None
        needed = sum(slot.vram_bytes for slot in slots if gpus_of(slot) == gpus)
        where = f"GPU {' '.join(gpus)}"
        if any(slot.status in LOADING and not slot.no_room for slot in neighbours):
            return Shortage(f"{where}, where another worker loads", needed, 0, lambda _: 0)
        free = [each for slot in neighbours if gpus_of(slot) == gpus and (each := self._free_bytes(slot)) is not None]
        there = min(free, default=needed)
        if needed <= there:
            return None
        fresh = any(slot.status is SlotStatus.ASLEEP and now_s - slot.since_s < STALE_S for slot in neighbours)
        return Shortage(where, needed, there, lambda slot: 0 if fresh or slot not in neighbours else slot.vram_bytes)

    def _free_bytes(self, slot: Slot) -> int | None:
        """Of the GPUs of a worker that is ready, by its own last look."""
        fields = self._board.workers[slot.spec.row].read() if slot.status is SlotStatus.READY else None
        if not fields or not fields["vram_total_bytes"]:
            return None
        return fields["vram_total_bytes"] - fields["vram_used_bytes"]


def gpus_of(slot: Slot) -> tuple[str, ...]:
    """As the configuration names them; one GPU has one name, see config/load.py."""
    return slot.spec.worker.gpus if slot.spec.worker else ()
