"""The second look: which stored answers may be given, and why not."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metamusesd.cache.admission import admits
from metamusesd.cache.verifier import LONGEST, Judgement, Verdict, verify
from tests.unit.cache import verifier_rows, verifier_twins

KINDS = verifier_rows.KINDS | verifier_twins.KINDS
ROWS = [pytest.param(*row, id=f"{kind}-{at}") for kind, rows in KINDS.items() for at, row in enumerate(rows)]
ODD = {
    "spaces": " " * 100_000,
    "words": "why " * 10_000,
    "distinct words": " ".join(f"w{i}" for i in range(1_500))[:LONGEST],
    "short words": " ".join(chr(97 + i % 26) + chr(97 + i // 26 % 26) for i in range(2_600)),
    "one word": "a" * LONGEST,
    "capitals": "US " * 2_500,
    "calls": "f(" * 3_500,
    "underscores": "_" * LONGEST,
    "marks": "?." * 3_500,
    "money": "$a " * 2_500,
    "nulls": "\0" * 1_000,
    "surrogate": "what is \ud800",
    "emoji": "🙂" * 1_000,
    "combining": "e" + "\u0301" * 5_000,
}


@pytest.mark.parametrize(("asked", "stored", "verdict", "reason"), ROWS)
def test_every_row_of_the_table_is_judged_as_written(asked: str, stored: str, verdict: str, reason: str) -> None:
    """A person can read what the second look does from the table."""
    judgement = verify(asked, stored)
    assert (judgement.verdict, reason in judgement.reason) == (Verdict(verdict), True), judgement


@pytest.mark.parametrize(("asked", "stored", "verdict", "reason"), ROWS)
def test_the_order_of_the_two_questions_does_not_matter(asked: str, stored: str, verdict: str, reason: str) -> None:
    """What may be given to one may be given to the other."""
    assert verify(stored, asked).verdict == Verdict(verdict)


@pytest.mark.parametrize("text", sorted({text for rows in KINDS.values() for row in rows for text in row[:2]}))
def test_a_question_is_the_same_as_itself(text: str) -> None:
    """Also with other spaces around it."""
    assert verify(text, text).verdict is Verdict.SAME
    if any(ch.isalnum() for ch in text):
        assert verify(text, f"  {text}  ").verdict is Verdict.SAME


_TEXT = "what how do I you is the a of not never and or from to in 3 4 % hot cold before Anna Ben by was seen ' ? , ."
_WORDS = st.sampled_from(_TEXT.split())
_SENTENCES = st.lists(_WORDS, max_size=14).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), _SENTENCES), st.one_of(st.text(max_size=60), _SENTENCES))
def test_any_two_texts_get_a_symmetric_verdict(asked: str, stored: str) -> None:
    """It never raises, and it always says why."""
    judgement = verify(asked, stored)
    assert judgement.reason
    assert verify(stored, asked).verdict is judgement.verdict


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=60), _SENTENCES))
def test_any_text_is_the_same_as_itself(text: str) -> None:
    """Reflexive."""
    assert verify(text, text).verdict is Verdict.SAME


@settings(max_examples=200, deadline=None)
@given(_SENTENCES, st.integers(2, 99), st.integers(100, 999))
def test_no_frame_hides_a_number(sentence: str, small: int, big: int) -> None:
    """Whatever stands around it, another number is another question."""
    assert verify(f"{sentence} {small} boats", f"{sentence} {big} boats").verdict is Verdict.DIFFERENT


@pytest.mark.parametrize("name", ODD)
def test_odd_texts_take_little_time(name: str) -> None:
    """Long or hostile, a text is refused or compared within a moment; never stuck."""
    start = time.perf_counter()
    judgement = verify(ODD[name], f"{ODD[name][: LONGEST - 9]} not b")
    assert judgement.verdict is not Verdict.SAME
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize(
    ("verdict", "floor", "score", "bar", "given_away"),
    [
        (Verdict.SAME, 0.0, 0.86, 0.0, True),
        (Verdict.SAME, 0.0, 0.84, 0.0, False),
        (Verdict.SAME, 0.9, 0.88, 0.0, False),
        (Verdict.SAME, 0.99, 0.96, 0.0, True),
        (Verdict.SAME, 0.0, 0.97, 0.98, False),
        (Verdict.UNSURE, 0.0, 0.94, 0.0, False),
        (Verdict.UNSURE, 0.0, 0.95, 0.0, True),
        (Verdict.DIFFERENT, 0.0, 1.0, 0.0, False),
    ],
)
def test_a_score_and_a_verdict_decide_together(
    verdict: Verdict, floor: float, score: float, bar: float, given_away: bool
) -> None:
    """A high score is enough unless refused; a middling one needs the words; a bar must be reached by all."""
    assert admits(Judgement(verdict, "because", floor), score, bar=bar) is given_away


def test_thresholds_can_be_set() -> None:
    """They are the caller's."""
    same = Judgement(Verdict.SAME, "because")
    assert admits(same, 0.8, candidate_threshold=0.75)
    assert not admits(same, 0.96, candidate_threshold=0.97, similarity_threshold=0.98)
