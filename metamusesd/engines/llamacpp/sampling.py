"""Stage 8 · worker · logits become a token: per-sequence sampling on numpy, in llama.cpp's default order.

    logit_bias → penalties (whole prompt and answer) → top_k → top_p → min_p → temperature → draw

numpy instead of llama.cpp's sampler chains: over 49 152 words a whole draw with top_k 40 and top_p takes about 30 µs
(with a warm cache), because the best 40 are found without filling a candidate array or sorting.
The draw is a function of (seed, position), so it is the same after a sequence was pre-empted, evicted and
recomputed, and no generator state has to be kept.

A grammar is asked about the sampled token alone; only when it says no are the allowed ones sought, among some of the
best first, then among more of them, and among all when none of those is allowed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]

GROUPS = 512
NUCLEUS_WIDTH = 1024
RESAMPLE_WIDTHS = (64, 1024, 8192)  # how many of the best tokens are tried against a grammar before all of them


class Grammar(Protocol):
    """A grammar's state in one sequence."""

    def allows(self, tokens: Ids) -> npt.NDArray[np.bool_]: ...

    def accept(self, token: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Choice:
    """How to choose tokens: the request's parameters with every default filled in."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 40  # 0: no limit
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    bias: dict[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    banned: tuple[int, ...] = ()  # end tokens of a request that ignores them

    @property
    def bans(self) -> bool:
        """Whether the request itself forbids some tokens."""
        return any(value == -np.inf for value in self.bias.values())

    @property
    def penalized(self) -> bool:
        return self.repeat_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class Sampler:
    """The sampling state of one sequence."""

    __slots__ = ("_banned", "_bans", "_bias_ids", "_bias_values", "_counts", "choice", "grammar", "greedy")

    def __init__(self, choice: Choice, prompt: Ids, grammar: Grammar | None = None) -> None:
        self.choice = choice
        self.grammar = grammar
        self.greedy = choice.temperature <= 0.0 or choice.top_k == 1
        self._banned = np.array(choice.banned, np.int32)
        self._bans = choice.bans
        self._bias_ids = np.array(list(choice.bias), np.int32)
        self._bias_values = np.array(list(choice.bias.values()), np.float32)
        self._counts = Counts(prompt) if choice.penalized else None

    @property
    def plain(self) -> bool:
        """True when the token is the largest logit and nothing else is asked for."""
        choice = self.choice
        return self.greedy and not (
            choice.bias or choice.penalized or choice.banned or self.grammar or choice.logprobs is not None
        )

    def pick(self, row: Row, position: int) -> int:
        """The next token from `row`, which is changed in place; -1 when none is left.

        Its position in the sequence steers the draw.
        """
        self._adjust(row)
        if self._bans and row.max() == -np.inf:
            return -1
        token = self._draw(row, position)
        if self.grammar is not None and not self.grammar.allows(np.array([token], np.int32))[0]:
            token = self._resample(row, position)
        return token

    def accept(self, token: int) -> None:
        """`token` is now part of the sequence."""
        if self._counts is not None:
            self._counts.add(token)
        if self.grammar is not None:
            self.grammar.accept(token)

    def _adjust(self, row: Row) -> None:
        if len(self._bias_ids):
            row[self._bias_ids] += self._bias_values
        if len(self._banned):
            row[self._banned] = -np.inf
        if self._counts is not None:
            penalize(row, self._counts, self.choice)

    def _draw(self, row: Row, position: int) -> int:
        if self.greedy:
            return int(row.argmax())
        ids, weights = distribution(row, self.choice)
        return int(ids[draw(weights, uniform(self.choice.seed, position))])

    def _resample(self, row: Row, position: int) -> int:
        """The token drawn from those that the grammar allows; -1 when it allows none that is not banned.

        DANGER: the largest of nothing but banned tokens is token 0, and a grammar that has to accept what it does not
        allow ends the process.
        """
        assert self.grammar is not None
        for ids in widening(row):
            allowed = ids[self.grammar.allows(ids) & np.isfinite(row[ids])]
            if len(allowed):
                masked = np.full_like(row, -np.inf)
                masked[allowed] = row[allowed]
                return self._draw(masked, position)
        return -1


class Counts:
    """How often each token stands in a sequence, as two parallel arrays that numpy can index with."""

    __slots__ = ("_counts", "_ids", "_length", "_places")

    def __init__(self, tokens: Sequence[int] | Ids) -> None:
        ids, counts = np.unique(np.asarray(tokens, np.int32), return_counts=True)
        self._length = len(ids)
        room = np.zeros(256, np.int32)
        self._ids = np.concatenate([ids.astype(np.int32), room])
        self._counts = np.concatenate([counts.astype(np.int32), room])
        self._places = {int(token): place for place, token in enumerate(ids)}

    @property
    def ids(self) -> Ids:
        return self._ids[: self._length]

    @property
    def counts(self) -> Ids:
        return self._counts[: self._length]

    def add(self, token: int) -> None:
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = self._length
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[place] = token
            self._length += 1
        self._counts[place] += 1


def penalize(row: Row, seen: Counts, choice: Choice) -> None:
    """Make tokens that were seen less likely, as llama.cpp does."""
    ids = seen.ids
    logits = row[ids]
    if choice.repeat_penalty != 1.0:
        logits = np.where(logits > 0, logits / choice.repeat_penalty, logits * choice.repeat_penalty)
    row[ids] = logits - seen.counts * choice.frequency_penalty - choice.presence_penalty


def best_ids(row: Row, count: int) -> Ids:
    """The ids of the `count` largest logits, largest first, lower ids first among equals."""
    ids = _candidates(row, count) if count < len(row) else np.arange(len(row))
    order = np.lexsort((ids, -row[ids]))[:count]
    return ids[order].astype(np.int32)


def _candidates(row: Row, count: int) -> npt.NDArray[np.intp]:
    """A few ids, the `count` best certainly among them.

    The maxima of more than `count` disjoint groups are found quickest; the count-th best of those maxima is no larger
    than the count-th best logit, so nothing below it matters.
    """
    if count < 1:
        return np.zeros(0, np.intp)
    groups = max(GROUPS, 4 * count)
    depth = len(row) // groups
    maxima = row[: depth * groups].reshape(depth, groups).max(axis=0) if depth >= 4 else row
    floor = np.partition(maxima, len(maxima) - count)[len(maxima) - count]
    return np.flatnonzero(row >= floor)


def widening(row: Row) -> Iterator[Ids]:
    """The ids of the largest logits, more and more of them, and at last all; in no order.

    A grammar takes 0.1 µs a token; to sort all of them took as long again, for nothing: what is drawn from them is the
    same in any order.
    """
    for width in RESAMPLE_WIDTHS:
        if width < len(row):
            yield _candidates(row, width).astype(np.int32)
    yield np.arange(len(row), dtype=np.int32)


def distribution(row: Row, choice: Choice) -> tuple[Ids, npt.NDArray[np.float64]]:
    """The tokens that may be drawn and their weights (not normalized)."""
    limited = choice.top_p < 1.0 or choice.min_p > 0.0
    if choice.top_k:
        ids = best_ids(row, choice.top_k)
        if limited:
            weights = _weights(row[ids], float(row[ids[0]]))
            ids = ids[: _kept(weights, float(weights.sum()), choice)]
    elif limited:
        ids = _nucleus(row, choice)
    else:
        ids = np.arange(len(row), dtype=np.int32)
    logits = row[ids].astype(np.float64)
    return ids, np.exp((logits - logits.max()) / choice.temperature)


def _nucleus(row: Row, choice: Choice) -> Ids:
    """What top_p and min_p leave of all tokens; sorting all of them (4 ms) is the last resort."""
    largest = float(row.max())
    total = float(_weights(row, largest).sum())
    for width in (NUCLEUS_WIDTH, len(row)):
        ids = best_ids(row, width)
        kept = _kept(_weights(row[ids], largest), total, choice)
        if kept < len(ids):
            break
    return ids[:kept]


def _weights(logits: Row, largest: float) -> npt.NDArray[np.float64]:
    """Probabilities before normalization, the likeliest having 1."""
    return np.exp(logits.astype(np.float64) - largest)


def _kept(weights: npt.NDArray[np.float64], total: float, choice: Choice) -> int:
    """How many of the tokens, most likely first, pass top_p and min_p. At least one."""
    kept = len(weights)
    if choice.top_p < 1.0:
        kept = int(weights.cumsum().searchsorted(choice.top_p * total)) + 1
    if choice.min_p > 0.0:
        kept = min(kept, int(np.count_nonzero(weights >= choice.min_p)))
    return max(1, min(kept, len(weights)))


def draw(weights: npt.NDArray[np.float64], point: float) -> int:
    """The index that `point` (0 ≤ point < 1) falls on."""
    running = weights.cumsum()
    return min(int(running.searchsorted(point * running[-1], side="right")), len(weights) - 1)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on `seed` and `position` only."""
    digest = hashlib.blake2b(b"%d:%d" % (seed, position), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def log_probabilities(row: Row, token: int, most: int) -> tuple[float, list[tuple[int, float]]]:
    """The log-probability of `token` under the model alone, and those of the `most` likeliest tokens."""
    largest = float(row.max())
    total = largest + float(np.log(np.exp(row - largest).sum(dtype=np.float64)))
    best = best_ids(row, most) if most else ()
    return float(row[token]) - total, [(int(other), float(row[other]) - total) for other in best]


def describe(token: str, logprob: float, top: list[tuple[str, float]]) -> dict[str, Any]:
    """One token's entry in a result's logprobs."""
    return {"token": token, "logprob": logprob, "top": [{"token": text, "logprob": value} for text, value in top]}
