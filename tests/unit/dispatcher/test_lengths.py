"""How long answers are expected to be."""

from __future__ import annotations

from metamusesd.dispatcher.lengths import GUESSED_TOKENS, MOST_MUSES, Lengths


def test_nothing_is_known_at_first() -> None:
    """A guess, and never more than the request allows."""
    assert Lengths().expect("fast", "1", None) == GUESSED_TOKENS
    assert Lengths().expect("fast", "1", 20) == 20


def test_a_muse_is_told_from_its_tier() -> None:
    """The more answers of its own, the nearer its own mean; an unknown muse gets the tier's."""
    lengths = Lengths()
    for _ in range(20):
        lengths.learn("fast", "talker", 400)
        lengths.learn("fast", "poet", 40)
    assert lengths.expect("fast", "stranger", None) == 220
    assert 350 < lengths.expect("fast", "talker", None) < 400
    assert 40 < lengths.expect("fast", "poet", None) < 90
    assert lengths.expect("heavy", "poet", None) == GUESSED_TOKENS


def test_the_past_fades() -> None:
    """After some hundred answers of another length, the old ones are forgotten."""
    lengths = Lengths()
    for tokens in [1000] * 50 + [10] * 250:
        lengths.learn("fast", "m", tokens)
    assert lengths.expect("fast", "m", None) < 30


def test_muses_are_bounded() -> None:
    """The least recently heard of is forgotten first."""
    lengths = Lengths()
    for number in range(MOST_MUSES + 1):
        lengths.learn("fast", str(number), 8 if number else 4000)
    assert lengths.expect("fast", "0", None) < 10
