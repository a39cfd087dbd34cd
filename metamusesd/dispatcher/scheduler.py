"""Stage 6 · dispatcher · how many jobs of which class the workers could take, and when one would be finished. Pure.

A worker has room for a job of class c while fewer than `slots` of its jobs are of class c or higher, and fewer than
slots + reserve_slots in all: a critical job gets in over a batch full of low ones, which then yield their steps to it.
An aged job yields to nobody, and so counts as one of the highest class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from metamusesd.job import Priority
from metamusesd.queues.base import Claim, Want

CLASSES = len(Priority)
BYTES_A_TOKEN = 4  # of a job's body, roughly
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
        for floor, room in enumerate(_rooms(loads)):
            if room > asked:
                found.append(Want(tier, room - asked, floor))
                asked = room
    return found


def _rooms(loads: Sequence[WorkerLoad]) -> list[int]:
    """By class: the sum of `room`. One pass: this is asked at every claim."""
    rooms = [0] * CLASSES
    for load in loads:
        if load.closed:
            continue
        rivals = sum(load.by_class)
        whole = load.slots + load.reserve_slots - rivals
        for priority in range(CLASSES):
            if whole <= 0:
                break
            if priority > load.refused and load.slots > rivals:
                rooms[priority] += min(load.slots - rivals, whole)
            rivals -= load.by_class[priority]
    return rooms


def estimate_tokens(claim: Claim) -> int:
    """Of a job's prompt, from the length of its body."""
    return len(claim.body) // BYTES_A_TOKEN


def own_tokens(prompt_tokens: int, warm: bool) -> float:
    """What of a prompt a worker would have to compute. `warm`: it holds the beginning of it already."""
    return prompt_tokens * WARM_SHARE if warm else prompt_tokens


def predict_s(load: WorkerLoad, priority: int, prompt_tokens: float, answer_tokens: float) -> float:
    """When such a job would be finished there. Jobs of lower classes yield to it and are not counted as neighbours."""
    prefill_rate = max(load.prefill_rate or GUESSED_PREFILL_RATE, SLOWEST_RATE)
    neighbours = sum(load.by_class[priority:])
    rate = max(load.decode_rate or GUESSED_DECODE_RATE, SLOWEST_RATE) / (neighbours + 1)
    return (load.prompt_tokens + prompt_tokens) / prefill_rate + answer_tokens / rate
