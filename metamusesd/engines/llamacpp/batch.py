"""Stage 8 · worker · plan one step: which sequences run, which yield, and how much prefill goes in.

Pure: views of the sequences and a budget in, a plan out. The rules, in this order:

1. A sequence of a lower class yields while one of a higher class is there, unless it is immune (its task is aged, or
   it has yielded long enough). Among those that may run, at most `slots` do.
2. Each that runs and has one token left to compute takes part in the decode batch.
3. Prompts are computed one after another, FIFO inside a class: eight prompts at once then wait 4.5 prompts on average
   for their first token, and not eight.
4. Prefill beside running streams is bounded by time: `prefill_ratio` × the decode time of the step, or `FLOOR_S`.
   A short prompt may instead spend the credit that decode steps have earned, and then the decodes sit the step out:
   bursts of short prompts start quickly, and in the long run prefill still takes no more than its ratio.
   On a CPU the chunk is a batch of its own: two prompt tokens that rode on two decodes cost as much as six alone.
   On a GPU prompts ride on the decode batch, several at once, as many as the same time allows: a batch costs one pass
   over the weights, and nobody has to sit out.
5. No step is planned longer than `STEP_CAP_S`, because what comes waits for its end; only a prompt in a step without
   streams may have large chunks, of `LARGE_CAP_S` together, for small ones cost up to twice as much behind a long
   prompt. A cancel breaks them off, and so does a job of a higher class; where it must not, because what was computed
   could not be taken back or the prompt has lost enough by it, they take `FIRM_CAP_S` at most, and also where
   somebody yields to them, for whom there is a limit.
6. Where chunks have a fixed length, it counts alone: how a prompt is cut must not depend on the clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from metamusesd.engines.llamacpp.rates import LARGE_CHUNK

STEP_CAP_S = 0.1
FLOOR_S = 0.04  # of prefill in a step: few streams decode so quickly that their share is all overhead
MIXED_FLOOR_S = 0.02  # the same where prompts ride along
LARGE_CAP_S = 1.0
FIRM_CAP_S = 0.35
CREDIT_CAP_S = 1.0
LEAST_CHUNK = 2  # tokens


@dataclass(frozen=True, slots=True)
class View:
    """What the plan needs to know of one sequence."""

    key: int
    rank: int  # the class
    order: int  # of admission
    remaining: int  # tokens to compute before its next token
    immune: bool = False  # it does not yield
    waiting: bool = False  # it has lost its KV and there is no room for it yet


@dataclass(frozen=True, slots=True)
class Budget:
    """What a step may cost."""

    slots: int
    chunk_limit: int  # tokens a batch can take
    decode_s: float  # per decode step of the sequences at hand
    chunk_s: float  # of a prompt chunk in a batch of its own, beside its tokens
    mixes: bool  # whether a prompt chunk rides on the decode batch
    prefill_s: float  # per token of the prompt that is next, in a small chunk
    large_s: float  # the same in a chunk of LARGE_CHUNK tokens and more
    prefill_ratio: float
    credit_s: float
    large_cap_s: float  # of a prompt in a step without streams
    chunk: int = 0  # tokens of every prompt chunk; 0: as many as fit the time


@dataclass(frozen=True, slots=True)
class Plan:
    """Who takes part in the step, by key. `spent_s` comes off the credit."""

    decode: tuple[int, ...] = ()
    prefill: tuple[tuple[int, int], ...] = ()  # key, tokens
    yielding: tuple[int, ...] = ()
    spent_s: float = 0.0


def runnable(views: list[View], slots: int) -> list[View]:
    """Those that run now, at most `slots`: the highest class that is there, FIFO; and of the lower ones those that have
    yielded for long enough (immune), in what that class leaves free, but in half of the slots at least."""
    ready = [view for view in views if not view.waiting]
    if not ready:
        return []
    top = max(view.rank for view in ready)
    best = sorted((view for view in ready if view.rank == top), key=lambda view: (not view.immune, view.order))
    others = sorted((view for view in ready if view.immune and view.rank < top), key=lambda v: (-v.rank, v.order))
    share = min(len(others), max((slots + 1) // 2, slots - len(best)))
    return best[: slots - share] + others[:share]


def prompts(running: list[View]) -> list[View]:
    """Whose prompts are to be computed, the next one first: the highest class, FIFO inside it."""
    return sorted((view for view in running if view.remaining > 1), key=lambda view: (-view.rank, view.order))


def next_prompt(running: list[View]) -> View | None:
    """Whose prompt is computed next."""
    return next(iter(prompts(running)), None)


def plan(running: list[View], views: list[View], budget: Budget, held: frozenset[int] = frozenset()) -> Plan:
    """The plan of one step for those that `runnable` chose from `views`. The prompts of `held`, by key, sit it out."""
    decode = tuple(view.key for view in running if view.remaining == 1)
    waiting = [view for view in prompts(running) if view.key not in held]
    chosen = {view.key for view in running}
    yielding = tuple(view.key for view in views if view.key not in chosen)
    if not waiting:
        return Plan(decode, (), yielding)
    first = waiting[0]
    if budget.chunk:
        return Plan(decode, ((first.key, min(budget.chunk, first.remaining)),), yielding)
    if budget.mixes:
        return Plan(decode, _riding(waiting, len(decode), budget), yielding)
    whole_s = budget.chunk_s + first.remaining * budget.large_s
    if not decode:
        return Plan((), ((first.key, _alone(first, budget)),), yielding)
    if whole_s <= budget.credit_s:
        count = _alone(first, budget)
        return Plan((), ((first.key, count),), yielding, whole_s * count / first.remaining)
    allowed_s = min(max(budget.prefill_ratio * budget.decode_s, FLOOR_S), STEP_CAP_S) - budget.chunk_s
    count = max(LEAST_CHUNK, int(allowed_s / budget.prefill_s))
    return Plan(decode, ((first.key, min(count, first.remaining, budget.chunk_limit - len(decode))),), yielding)


def _riding(waiting: list[View], decodes: int, budget: Budget) -> tuple[tuple[int, int], ...]:
    """The prompts that ride on a batch of so many decodes: FIFO, until time or batch is full."""
    allowed_s = STEP_CAP_S
    if decodes:
        allowed_s = min(max(budget.prefill_ratio * budget.decode_s, MIXED_FLOOR_S), STEP_CAP_S)
    left = min(max(LEAST_CHUNK, int(allowed_s / budget.prefill_s)), budget.chunk_limit - decodes)
    taken = []
    for view in waiting:
        if left <= 0:
            break
        taken.append((view.key, min(view.remaining, left)))
        left -= view.remaining
    return tuple(taken)


def _alone(prompt: View, budget: Budget) -> int:
    """How many tokens of the prompt make a step without streams: all that are left, or large chunks and no odd end,
    which would be slow. One prompt a step: see rule 3."""
    allowed_s = budget.large_cap_s - budget.chunk_s
    count = min(int(allowed_s / budget.large_s), budget.chunk_limit)
    if count < LARGE_CHUNK:
        count = min(int(allowed_s / budget.prefill_s), LARGE_CHUNK - 1)
    elif count < prompt.remaining:
        count -= count % LARGE_CHUNK
    return min(max(count, LEAST_CHUNK), prompt.remaining, budget.chunk_limit)


def earned_s(credit_s: float, plan_: Plan, took_s: float, ratio: float) -> float:
    """The credit after a step: decoding earns, short prompts spend, and without streams it is full."""
    if not plan_.decode and not plan_.spent_s:
        return CREDIT_CAP_S
    if plan_.prefill:
        return max(0.0, credit_s - plan_.spent_s)
    return min(CREDIT_CAP_S, credit_s + ratio * took_s)
