"""The cost model of steps."""

from __future__ import annotations

import pytest

from metamusesd.engines.llamacpp.rates import Rates, best_parts, interpolate


def test_interpolation_between_and_beyond() -> None:
    """Sizes that were not measured lie on the line between their neighbours, or grow in proportion beyond."""
    measured = {1: 1.0, 2: 2.0, 4: 6.0}
    assert [interpolate(measured, size) for size in (1, 3, 8)] == [1.0, 4.0, 12.0]


def test_a_batch_is_cut_where_that_is_quicker() -> None:
    """Two single decodes replace a batch of two that costs three times as much; a cut that saves little is not made."""
    assert best_parts([0.0, 1.0, 3.0])[2] == (1, 1)
    assert best_parts([0.0, 1.0, 1.2])[2] == (2,)
    assert best_parts([0.0] + [size**2 for size in range(1, 9)])[8] == (8,)
    assert best_parts([0.0, 1.0, 2.05])[2] == (2,)


def test_rates_follow_what_steps_cost() -> None:
    """Dearer steps raise the estimate; prefill costs what a mixed step took beyond its decodes."""
    rates = Rates()
    rates.calibrate({1: 0.01, 2: 0.012}, {8: 0.05, 64: 0.33}, 2)
    assert (rates.prefill_s, rates.chunk_s) == (pytest.approx(0.005), pytest.approx(0.01))
    for _ in range(40):
        rates.saw_decode(2, 0.024)
        rates.saw_prefill(10, 0, 2, 0.124, True)
    assert rates.decode_cost_s(2) == pytest.approx(0.024, rel=0.01)
    assert rates.prompt_tokens_per_s == pytest.approx(100, rel=0.01)


def test_long_prompts_do_not_spoil_short_ones() -> None:
    """What chunks far into a prompt cost more is put down to attention, apart for small and large chunks."""
    rates = Rates()
    rates.calibrate({1: 0.01}, {8: 0.05, 64: 0.33}, 1)
    for _ in range(60):
        rates.saw_prefill(10, 1000, 0, 0.06 + 10 * 0.004, True)
    assert rates.token_cost_s(1000, large=False) == pytest.approx(0.009, rel=0.02)
    assert rates.token_cost_s(1000, large=True) == pytest.approx(0.01, rel=0.02)
    assert rates.token_cost_s(0, large=False) == pytest.approx(0.005)


def test_single_sequences_are_parts_of_their_own() -> None:
    """Where nobody may share a batch, n sequences cost n single steps, however much quicker a batch would be."""
    rates = Rates(single=True)
    rates.calibrate({1: 0.01, 4: 0.02}, {8: 0.05, 64: 0.33}, 4)
    assert rates.split(4) == (1, 1, 1, 1)
    assert rates.decode_cost_s(4) == pytest.approx(0.04)
