"""Grammars are proven harmless before they reach C in this process."""

from __future__ import annotations

import os
import time

import pytest

from metamusesd.engines.bounds import check_bounds
from metamusesd.engines.llamacpp import grammar
from metamusesd.engines.llamacpp.grammar import GrammarShelf, run_in_child
from metamusesd.errors import InvalidGrammar


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('root ::= "' + "a" * 300_000 + '"', "bytes"),
        ("root ::= " + "(" * 65 + '"a"' + ")" * 65, "nests"),
        ('root ::= "a"{1,99999}', "repeats"),
        ('root ::= ("a"{1,\n99999})', "repeats"),
        ('root ::= "\n" ' + "(" * 65 + '"a"' + ")" * 65, "nests"),
        ('root ::= "\ud800"', "surrogate"),
        ("\n".join(f'r{i} ::= "a"' for i in range(2001)), "rules"),
    ],
)
def test_bounds(text: str, reason: str) -> None:
    """Too long, too deep, too many repetitions or rules: refused before any parser sees it."""
    with pytest.raises(InvalidGrammar, match=reason):
        check_bounds(text)


def test_brackets_in_literals_do_not_count() -> None:
    """Parentheses and braces inside strings, classes and comments are no nesting."""
    check_bounds('root ::= "' + "(" * 100 + '" [({] # ((((\n')


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    "noise", ["[", "]", '"', "\\", "{", "(", "#", '["', '"\\', "[\\", "{1,", '"[{(#', '"a\\"b[c\\]d', "{\n", "{#\n"]
)
def test_the_scan_is_linear(noise: str) -> None:
    """No 65 000 characters of unclosed quotes, brackets or backslashes keep the process from its streams."""
    try:
        check_bounds("root ::= " + noise * (65_000 // len(noise)))
    except InvalidGrammar as refusal:
        assert refusal.remedy


def test_the_child_survives_for_us() -> None:
    """A trial that crashes, raises, allocates too much or never ends is a refusal, and this process goes on."""
    assert run_in_child(lambda: "fine") == "fine"
    with pytest.raises(InvalidGrammar, match="crashed"):
        run_in_child(lambda: os.abort())  # type: ignore[func-returns-value]
    with pytest.raises(InvalidGrammar, match="too much memory"):
        run_in_child(lambda: str(len(bytearray(2**32))))


def test_a_refusal_is_in_our_words() -> None:
    """What a trial refuses arrives with its remedy; what it trips over arrives without the exception's text."""

    def refuse() -> str:
        raise InvalidGrammar("no such word", remedy="say another")

    with pytest.raises(InvalidGrammar, match="no such word") as caught:
        run_in_child(refuse)
    assert caught.value.remedy == "say another"
    with pytest.raises(InvalidGrammar, match="it cannot be compiled"):
        run_in_child(lambda: str(int("no good")))


def test_a_trial_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that does not end is killed."""
    monkeypatch.setattr(grammar, "TRIAL_LIMIT_S", 0.1)
    with pytest.raises(InvalidGrammar, match="took over"):
        run_in_child(lambda: str(time.sleep(60)))


def test_outcomes_are_remembered() -> None:
    """A grammar is tried once, whether it was accepted or refused."""
    compiled: list[str] = []

    def compile_(text: str) -> object:
        compiled.append(text)
        return object() if "good" in text else None

    shelf = GrammarShelf(lambda schema: schema, lambda text: None, compile_)
    assert shelf.of_gbnf("good") is shelf.of_gbnf("good")
    for _ in range(2):
        with pytest.raises(InvalidGrammar):
            shelf.of_gbnf("bad")
    assert compiled == ["good", "bad"]


def test_what_is_asked_for_again_and_again_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shelf is full of others that came once: the one in use is not compiled again, the oldest of them is."""
    monkeypatch.setattr(grammar, "REMEMBERED", 4)
    compiled: list[str] = []
    shelf = GrammarShelf(str, lambda text: None, lambda text: compiled.append(text) or text)
    for number in range(8):
        shelf.of_gbnf("used")
        shelf.of_gbnf(f"once {number}")
    assert compiled.count("used") == 1
    shelf.of_gbnf("once 0")
    assert compiled.count("once 0") == 2
