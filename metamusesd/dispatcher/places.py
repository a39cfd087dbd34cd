"""Stage 6 · dispatcher · which worker of which tier gets a claimed job: the scheduler's second half. Pure.

Its tier's workers may have it; those of another acceptable tier, too, where nobody waits: with a penalty, so that a job
leaves its home for a real gain only.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metamusesd.dispatcher.scheduler import WorkerLoad, own_tokens, predict_s
from metamusesd.route import Placed, Seen

MOST_SEEN = 8  # workers that a job's record tells of


@dataclass(frozen=True, slots=True)
class Option:
    """One worker that could have the job."""

    worker: str
    tier: str
    load: WorkerLoad
    warm: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """What the scheduler must know of a job. `expected`: by tier, the tokens of its answer; `home`: the best tier."""

    priority: int
    prompt_tokens: int
    expected: Mapping[str, float]
    home: str
    margin: float


def place(options: Sequence[Option], order: Order) -> tuple[int, Placed] | None:
    """(the index of the option with the earliest predicted finish, the record). None: none has room."""
    found = []
    for index, option in enumerate(options):
        if option.load.room(order.priority) > 0:
            predicted_s = finish_s(option, order)
            found.append((predicted_s * (1.0 if option.tier == order.home else 1.0 + order.margin), index, predicted_s))
    if not found:
        return None
    nearest = heapq.nsmallest(MOST_SEEN, found)
    chosen = options[nearest[0][1]]
    return nearest[0][1], Placed(
        worker=chosen.worker, tier=chosen.tier, reason=_reason(options, order, chosen, len(found)),
        expected_tokens=round(order.expected.get(chosen.tier, 0.0), 1),
        loads=tuple(_seen(options[index], order, predicted_s) for _, index, predicted_s in nearest),
    )  # fmt: skip


def _seen(option: Option, order: Order, predicted_s: float) -> Seen:
    load = option.load
    return Seen(
        worker=option.worker, finish_s=round(predicted_s, 3), jobs=sum(load.by_class), room=load.room(order.priority),
        waiting_tokens=load.prompt_tokens, decode_rate=round(load.decode_rate, 1), warm=option.warm,
    )  # fmt: skip


def finish_s(option: Option, order: Order) -> float:
    """When the job would be finished there, from now."""
    tokens = own_tokens(order.prompt_tokens, option.warm)
    return predict_s(option.load, order.priority, tokens, order.expected[option.tier])


def _reason(options: Sequence[Option], order: Order, chosen: Option, rivals: int) -> str:
    if chosen.tier != order.home:
        return f"{chosen.tier} is sooner than {order.home}"
    if len(options) == 1:
        return "the only worker"
    if rivals == 1:
        return "the only one with room"
    return "earliest finish" + (", holds the prompt's beginning" if chosen.warm else "")
