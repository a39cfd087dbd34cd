"""The tune benchmark's pure parts: who does what, and from when guessing ahead pays."""

from __future__ import annotations

import pytest

from benchmarks.tune import Task
from benchmarks.tune_cases import pays_from
from benchmarks.tune_child import Work


def test_streams_are_dealt_out_and_prompts_taken_in_turn() -> None:
    """No token is computed twice or left out, however many workers there are; who has nothing to do rests."""
    streams = Task("", Work(streams=5, past=64, steps=3))
    assert [[work.streams for work in pile] for pile in streams.shares(2)] == [[3], [2]]
    assert streams.shares(1) == [[streams.work]]
    assert Task("", Work(streams=1)).shares(2)[1] == []
    prompts = Task("", Work(tokens=100), prompts=3)
    assert [len(pile) for pile in prompts.shares(2)] == [2, 1]
    assert (streams.tokens, prompts.tokens) == (15, 300)


@pytest.mark.parametrize(
    ("cost", "count", "share"),
    [
        (1.0, 4, 0.0),  # as quick as one token: any right guess is a gain
        (1.75, 3, 0.5),  # 1 + 1/2 + 1/4
        (1.9, 2, 0.9),
        (2.0, 2, None),  # as dear as two steps: nothing to gain
        (5.0, 4, None),
    ],
)
def test_guessing_pays_from(cost: float, count: int, share: float | None) -> None:
    """Where the tokens to be expected of a step are worth its cost."""
    assert pays_from(cost, count) == (None if share is None else pytest.approx(share, abs=1e-3))
