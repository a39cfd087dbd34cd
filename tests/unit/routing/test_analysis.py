"""What a prompt asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamusesd.routing.analysis import DOMAINS, LEVELS, WEIGHTS_FILE, analyse
from metamusesd.routing.features import NAMES, look
from metamusesd.routing.forms import FORMS

CORPUS = Path(__file__).parents[3] / "training" / "routing"


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("Hello, how are you?", "general"),
        ("Write a function to sort an array", "code"),
        ("Escribe una función que ordene una lista", "code"),
        ("写一个函数来反转字符串", "code"),
        ("Why does this raise a KeyError?\n```python\nd = {}\nprint(d['a'])\n```", "code"),
        ("Solve for x: 3x + 7 = 22", "math"),
        ("Löse die Gleichung x^2 - 5x + 6 = 0", "math"),
        ("Lena has 12 plums and eats 5. How many plums are left?", "math"),
        ("Calcule l'intégrale de x^2 entre 0 et 3", "math"),
        (
            "All birds have wings. Pip is a bird. Does it follow that Pip has wings: true, false or uncertain?",
            "reasoning",
        ),
        ("Explain the philosophical implications of artificial consciousness", "general"),
        ("Translate 'good morning' into Italian", "general"),
        ("Set an alarm for seven tomorrow", "general"),
    ],
)
def test_domains_in_several_languages(text: str, domain: str) -> None:
    """Form and words tell what a prompt is about."""
    assert analyse(text).domain == domain


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("hi", "simple"),
        ("tell me a joke", "simple"),
        ("Explain the philosophical implications of quantum mechanics for free will", "complex"),
        ("Prove that every bounded monotone sequence of real numbers converges.", "complex"),
        ("Maya buys 3 pens for 2 dollars each. How much does she pay?", "simple"),
        ("Design a distributed rate limiter with strong consistency, and discuss its trade-offs", "complex"),
    ],
)
def test_levels(text: str, level: str) -> None:
    """A greeting is simple, a proof is not."""
    assert analyse(text).level == level


def test_an_empty_prompt_is_the_least_there_is() -> None:
    """Nothing to read: general, and simple."""
    found = analyse("")
    assert (found.domain, found.level) == ("general", "simple")


@given(st.text(max_size=5000))
def test_whatever_the_text(text: str) -> None:
    """Every text has a domain and a level, the same each time, with figures in their bounds."""
    found = analyse(text)
    assert found.domain in DOMAINS and found.level in LEVELS
    assert 0 <= found.score <= 1 and 0 < found.confidence <= 1
    assert found == analyse(text)
    assert len(look(text).values) == len(NAMES) and all(0 <= value <= 3 for value in look(text).values)


def test_of_a_long_prompt_both_ends_are_read() -> None:
    """A task behind a megabyte of filler is found."""
    assert (
        analyse("filler words go on and on. " * 40_000 + "\nWrite a python function that parses this.").domain == "code"
    )


def test_pieces_only_save_time() -> None:
    """A pattern that is found in a text has one of its pieces there: what is skipped could not have been found."""
    texts = [
        json.loads(line)["query"]
        for path in sorted(CORPUS.glob("*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    for name, form in FORMS.items():
        for text in texts:
            if form.pieces and form.pattern.search(text):
                assert any(piece in text for piece in form.pieces), (name, text)


def test_the_shipped_weights_are_for_these_features() -> None:
    """They name their features, and no word or feature is without a weight for every class."""
    raw = json.loads(WEIGHTS_FILE.read_text("utf-8"))
    assert tuple(raw["features"]) == NAMES
    assert all(len(row) == len(DOMAINS) for row in raw["domain"])
    assert all(len(row) == len(LEVELS) for row in raw["level"])
    assert all(len(values) == len(DOMAINS) + len(LEVELS) for values in raw["words"].values())
