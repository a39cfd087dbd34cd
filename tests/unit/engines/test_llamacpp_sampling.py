"""Logits become tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamusesd.engines.llamacpp.sampling import (
    Choice,
    Counts,
    Sampler,
    best_ids,
    distribution,
    log_probabilities,
    penalize,
    uniform,
)

ROW = np.array([1.0, 3.0, 2.0, -1.0, 0.0], np.float32)
NONE = np.zeros(0, np.int32)


class Only:
    """A grammar that allows some tokens, for ever."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    def allows(self, tokens: np.ndarray) -> np.ndarray:
        return np.isin(tokens, self.tokens)

    def accept(self, token: int) -> None:
        assert token in self.tokens


def sampler(grammar: Only | None = None, **choice: object) -> Sampler:
    return Sampler(Choice(**({"temperature": 0.0} | choice)), NONE, grammar)  # type: ignore[arg-type]


def test_greedy_takes_the_largest() -> None:
    """Temperature 0 takes the largest logit; a bias or a ban moves it."""
    assert sampler().plain
    assert sampler().pick(ROW.copy(), 0) == 1
    assert sampler(bias={2: 5.0}).pick(ROW.copy(), 0) == 2
    assert sampler(banned=(1,)).pick(ROW.copy(), 0) == 2


def test_top_k_top_p_and_min_p_narrow_the_choice() -> None:
    """Each filter keeps the likeliest tokens, and at least one."""
    assert list(distribution(ROW, Choice(1.0, top_k=2))[0]) == [1, 2]
    assert list(distribution(ROW, Choice(1.0, top_k=0, top_p=0.5))[0]) == [1]
    assert list(distribution(ROW, Choice(1.0, top_k=0, min_p=0.3))[0]) == [1, 2]
    assert list(distribution(ROW, Choice(1.0, top_k=0, top_p=1e-9))[0]) == [1]


def test_draws_depend_on_seed_and_position_alone() -> None:
    """The same seed at the same position draws the same token; other positions differ."""
    first = [sampler(temperature=5.0, seed=7).pick(ROW.copy(), place) for place in range(40)]
    again = [sampler(temperature=5.0, seed=7).pick(ROW.copy(), place) for place in range(40)]
    assert first == again
    assert len(set(first)) > 1
    assert 0 <= uniform(0, 0) < 1


def test_draws_follow_the_distribution() -> None:
    """Over many positions tokens come as often as the softmax says."""
    one = sampler(temperature=1.0, seed=1, top_k=0)
    drawn = np.bincount([one.pick(ROW.copy(), place) for place in range(4000)], minlength=5) / 4000
    expected = np.exp(ROW) / np.exp(ROW).sum()
    assert np.abs(drawn - expected).max() < 0.03


def test_penalties_count_the_prompt() -> None:
    """A token of the prompt is penalized once for being there and again for each time."""
    seen = Counts([1, 1, 3])
    seen.add(4)
    row = ROW.copy()
    penalize(row, seen, Choice(0.0, repeat_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.1))
    assert np.allclose(row, [1.0, 3.0 / 2 - 1.0 - 0.1, 2.0, -2.0 - 0.5 - 0.1, 0.0 - 0.5 - 0.1])


def test_counts_grow() -> None:
    """Counting goes on beyond the first arrays."""
    seen = Counts([])
    for token in range(1000):
        seen.add(token)
        seen.add(token)
    assert list(seen.ids) == list(range(1000))
    assert set(seen.counts) == {2}


def test_a_grammar_rejects_and_the_best_allowed_token_is_taken() -> None:
    """The grammar is asked about the sampled token, and then for the best that it allows; -1 when there is none."""
    assert sampler(Only(0, 3)).pick(ROW.copy(), 0) == 0
    assert sampler(Only(1)).pick(ROW.copy(), 0) == 1
    assert sampler(Only()).pick(ROW.copy(), 0) == -1


@pytest.mark.parametrize("rank", [0, 1, 63, 64, 1000, 1024, 5000, 8191, 8192, 20_000, 29_999])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_best_allowed_token_is_found_at_any_depth(rank: int, temperature: float) -> None:
    """However unlikely: the only token that the grammar allows is taken, and of two the likelier one by the greedy."""
    row = np.random.default_rng(rank).normal(0, 3, 30_000).astype(np.float32)
    order = np.argsort(-row, kind="stable")
    only = sampler(Only(int(order[rank])), temperature=temperature)
    assert only.pick(row.copy(), 5) == order[rank]
    both = sampler(Only(int(order[rank]), int(order[-1])))
    assert both.pick(row.copy(), 5) == order[rank]


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_a_greedy_choice_is_the_best_of_all_that_are_allowed(seed: int, allowed: int) -> None:
    """Searching in widening sets finds what asking about every token finds, ties included."""
    random = np.random.default_rng(seed)
    row = random.integers(0, 2000, 12_000).astype(np.float32)
    tokens = random.choice(len(row), allowed, replace=False)
    best = min(tokens, key=lambda token: (-row[token], token))
    assert sampler(Only(*map(int, tokens))).pick(row.copy(), 0) == best


def test_an_unlikely_draw_is_from_the_allowed_alone() -> None:
    """Draws at a temperature fall on allowed tokens, on each of a few equal ones sooner or later."""
    row = np.random.default_rng(4).normal(0, 3, 30_000).astype(np.float32)
    few = [int(token) for token in np.argsort(row)[:3]]
    row[few] = row[few].mean()
    drawn = {sampler(Only(*few), temperature=1.0, seed=9).pick(row.copy(), position) for position in range(40)}
    assert drawn == set(few)


def test_best_ids_are_sorted_and_stable() -> None:
    """The best come first, lower ids first among equals."""
    assert list(best_ids(np.array([1, 2, 2, 0], np.float32), 3)) == [1, 2, 0]
    assert list(best_ids(ROW, 99)) == [1, 2, 0, 4, 3]


def test_log_probabilities_are_the_models_own() -> None:
    """Log-probabilities are the log-softmax of the logits."""
    own, best = log_probabilities(ROW, 0, 2)
    total = math.log(float(np.exp(ROW).sum()))
    assert math.isclose(own, 1.0 - total, rel_tol=1e-5)
    assert [token for token, _ in best] == [1, 2]


@given(st.integers(0, 2**32 - 1), st.integers(1, 900), st.sampled_from([500, 4096, 9001]))
def test_best_ids_agree_with_a_full_sort(seed: int, count: int, length: int) -> None:
    """The quick search finds exactly what sorting everything finds, ties included."""
    row = np.random.default_rng(seed).integers(0, 400, length).astype(np.float32)
    assert list(best_ids(row, count)) == list(np.lexsort((np.arange(length), -row))[:count])


def test_a_nucleus_without_top_k_is_exact() -> None:
    """Without top_k the quick search for the nucleus gives what sorting everything gives."""
    row = np.random.default_rng(1).normal(0, 3, 9000).astype(np.float32)
    order = np.argsort(-row, kind="stable")
    weights = np.exp(row[order].astype(np.float64) - row.max())
    expected = int((weights.cumsum() / weights.sum()).searchsorted(0.9)) + 1
    assert list(distribution(row, Choice(1.0, top_k=0, top_p=0.9))[0]) == list(order[:expected])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_when_all_is_banned_there_is_no_token(temperature: float) -> None:
    """Every token banned, or every one that the grammar allows: -1, without a warning or a wrong word."""
    everything = dict.fromkeys(range(len(ROW)), -math.inf)
    assert sampler(bias=everything, temperature=temperature).pick(ROW.copy(), 0) == -1
    assert sampler(Only(0, 3), bias={0: -math.inf, 3: -math.inf}, temperature=temperature).pick(ROW.copy(), 0) == -1
    assert sampler(Only(0, 3), bias={0: -math.inf}, temperature=temperature).pick(ROW.copy(), 0) == 3
