"""Who holds which KV cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamusesd.engines.llamacpp import kv


def holder(cells: kv.Cells, seq_id: int, tokens: list[int]) -> kv.Holder:
    made = kv.Holder(seq_id, np.array(tokens, np.int32), 4)
    made.grow(cells.take(len(tokens)))
    return made


def test_a_shared_cell_is_free_when_the_last_holder_lets_go() -> None:
    """Cells of a shared prefix stay used until both sequences are gone."""
    cells = kv.Cells(8)
    taken = cells.take(3)
    cells.share(taken[:2])
    cells.drop(taken)
    assert cells.free == 6
    cells.drop(taken[:2])
    assert cells.free == 8


def test_more_cells_than_free_is_an_error() -> None:
    """Taking without having made room is a mistake of ours and says so."""
    with pytest.raises(ValueError, match="9 cells wanted, 8 free"):
        kv.Cells(8).take(9)


def test_longest_prefix_wins() -> None:
    """The look-up finds the holder with the longest common prefix, and counts computed tokens only."""
    cells = kv.Cells(32)
    short, long = holder(cells, 1, [1, 2, 9]), holder(cells, 2, [1, 2, 3, 4])
    found, length = kv.longest_prefix(np.array([1, 2, 3, 5], np.int32), [short, long])
    assert (found, length) == (long, 3)
    assert kv.longest_prefix(np.array([7], np.int32), [short, long]) == (None, 0)


def test_eviction_counts_what_comes_free() -> None:
    """A cached sequence whose cells are all shared is spared: dropping it frees nothing."""
    cells = kv.Cells(32)
    shared, alone = holder(cells, 1, [1, 2, 3]), holder(cells, 2, [4, 5, 6])
    cells.share(shared.held)
    assert kv.evictions(cells, [shared, alone], 2) == [alone]
    assert kv.evictions(cells, [shared, alone], 9) == [shared, alone]


def test_a_longer_conversation_supersedes_its_beginning() -> None:
    """The KV of a follow-up turn makes that of the turn before needless."""
    cells = kv.Cells(32)
    first, other, newer = (holder(cells, i, t) for i, t in enumerate([[1, 2], [1, 3], [1, 2, 3]]))
    assert kv.superseded(newer, [first, other]) == [first]


@given(st.lists(st.tuples(st.sampled_from("tsd"), st.integers(0, 9)), max_size=60))
def test_cells_are_neither_lost_nor_doubled(moves: list[tuple[str, int]]) -> None:
    """Whatever is taken, shared and dropped: used + free is the total, and used is what the holders hold."""
    cells = kv.Cells(24)
    holders: list[np.ndarray] = []
    for kind, number in moves:
        if kind == "t" and cells.free >= number:
            holders.append(cells.take(number))
        elif kind == "s" and holders:
            shared = holders[number % len(holders)][:number]
            cells.share(shared)
            holders.append(shared)
        elif kind == "d" and holders:
            cells.drop(holders.pop(number % len(holders)))
        held = {int(cell) for some in holders for cell in some}
        assert cells.used == len(held)
        assert cells.free == 24 - len(held)


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), max_size=12))
def test_common_prefix_is_the_longest(left: list[int], right: list[int]) -> None:
    """common_prefix agrees with the obvious definition."""
    expected = next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )
    assert kv.common_prefix(np.array(left, np.int32), np.array(right, np.int32)) == expected
