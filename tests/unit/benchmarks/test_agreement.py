"""The agreement benchmark: where two answers part, and what is said of it."""

from __future__ import annotations

from benchmarks.agreement import END, Answer, Pair


def answer(*words: str, margins: tuple[float, ...] = ()) -> Answer:
    return Answer(list(words), [-0.5 * (place + 1) for place in range(len(words))], list(margins), 9, 1.0)


def test_equal_answers_do_not_differ() -> None:
    """To the end of both, and of the shorter one when it was cut."""
    assert not Pair("q", answer("a", "b"), answer("a", "b")).differs
    assert Pair("q", answer("a", "b"), answer("a", "b", "c")).equal == 2


def test_the_first_difference_counts() -> None:
    """What follows it has another context, and is not compared, whatever it is."""
    pair = Pair("q", answer("a", "b", "c"), answer("a", "x", "c"))
    assert (pair.equal, pair.compared, pair.differs) == (1, 3, True)
    assert pair.shifts == [0.0]


def test_an_end_is_a_word() -> None:
    """One that ends where the other goes on differs there."""
    pair = Pair("q", answer("a", END), answer("a", "b", "c"))
    assert (pair.equal, pair.differs) == (1, True)
