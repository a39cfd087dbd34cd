"""Stage 6 · dispatcher · which worker takes a job, and how many jobs of which class the workers could take. Pure.

A worker has room for a job of class c while fewer than `slots` of its jobs are of class c or higher, and fewer than
slots + reserve_slots in all: a critical job gets in over a batch full of low ones, which then yield their steps to it.
An aged job yields to nobody, and so counts as one of the highest class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from metamusesd.job import Priority
from metamusesd.queues.base import Claim, Want

CLASSES = len(Priority)
WARM_SHARE = 0.15  # of its prompt that a job with a known persona still has to compute, roughly
GUESSED_PREFILL_RATE = 200.0  # tokens/s, until the worker has measured
GUESSED_DECODE_RATE = 50.0
SLOWEST_RATE = 0.001
NOTHING_REFUSED = -1


@dataclass(slots=True)
class WorkerLoad:
    """One worker as the dispatcher sees it: what it holds, and what the board said last."""

    slots: int
    reserve_slots: int
    by_class: list[int] = field(default_factory=lambda: [0] * CLASSES)  # jobs that it holds, by standing
    prompt_tokens: int = 0  # sent and not computed yet, estimated
    prefill_rate: float = 0.0  # tokens/s; 0: not measured yet
    decode_rate: float = 0.0
    closed: bool = False  # kept free for, or in use by, one job that must run alone
    refused: int = NOTHING_REFUSED  # the highest class that it has refused since one of its jobs ended

    def room(self, priority: int) -> int:
        """How many more jobs of this class fit. A refusal is believed for its class and all lower ones."""
        if self.closed or priority <= self.refused:
            return 0
        rivals = sum(self.by_class[priority:])
        return max(0, min(self.slots - rivals, self.slots + self.reserve_slots - sum(self.by_class)))


def standing(claim: Claim) -> int:
    """The class that a running job counts as beside others."""
    return CLASSES - 1 if claim.aged else claim.priority


def wants(tiers: Mapping[str, Sequence[WorkerLoad]]) -> list[Want]:
    """What to claim for the free places: places for everybody first, then those that only higher classes may take."""
    found = []
    for tier, loads in tiers.items():
        asked = 0
        for floor in range(CLASSES):
            count = sum(load.room(floor) for load in loads) - asked
            if count > 0:
                found.append(Want(tier, count, floor))
                asked += count
    return found


def pick(
    loads: Sequence[WorkerLoad], priority: int, prompt_tokens: int, max_tokens: int, warm: Iterable[int] = ()
) -> int | None:
    """The index of the worker with the earliest predicted finish, or None when none has room.

    `warm`: indices of workers that already hold the beginning of the prompt.
    """
    best, best_s = None, 0.0
    for index, load in enumerate(loads):
        if load.room(priority) > 0:
            own_tokens = prompt_tokens * WARM_SHARE if index in warm else prompt_tokens
            finish_s = predict_s(load, priority, own_tokens, max_tokens)
            if best is None or finish_s < best_s:
                best, best_s = index, finish_s
    return best


def predict_s(load: WorkerLoad, priority: int, prompt_tokens: float, max_tokens: int) -> float:
    """When such a job would be finished there. Jobs of lower classes yield to it and are not counted as neighbours."""
    prefill_rate = max(load.prefill_rate or GUESSED_PREFILL_RATE, SLOWEST_RATE)
    neighbours = sum(load.by_class[priority:])
    rate = max(load.decode_rate or GUESSED_DECODE_RATE, SLOWEST_RATE) / (neighbours + 1)
    return (load.prompt_tokens + prompt_tokens) / prefill_rate + max_tokens / rate
