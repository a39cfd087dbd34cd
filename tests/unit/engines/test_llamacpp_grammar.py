"""Grammars are proven harmless before they reach C in this process."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from metamusesd.engines.llamacpp import grammar
from metamusesd.engines.llamacpp.grammar import GrammarShelf, check_bounds, check_schema, run_in_child
from metamusesd.errors import InvalidGrammar


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('root ::= "' + "a" * 300_000 + '"', "bytes"),
        ("root ::= " + "(" * 65 + '"a"' + ")" * 65, "nests"),
        ('root ::= "a"{1,99999}', "repeats"),
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


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        nested(40),
        {"$ref": "https://example.org/x.json"},
        {"maxLength": 10**9},
        {"enum": ["x" * 70_000]},
        {"a": float("nan")},
    ],
)
def test_schema_bounds(schema: dict[str, Any]) -> None:
    """Deep, huge, unbounded, or outward-referring schemas are refused."""
    with pytest.raises(InvalidGrammar):
        check_schema(schema)


def test_the_child_survives_for_us() -> None:
    """A trial that crashes, raises, allocates too much or never ends is a refusal, and this process goes on."""
    assert run_in_child(lambda: "fine") == "fine"
    with pytest.raises(InvalidGrammar, match="crashed"):
        run_in_child(lambda: os.abort())  # type: ignore[func-returns-value]
    with pytest.raises(InvalidGrammar, match="no good"):
        run_in_child(lambda: str(int("no good")))
    with pytest.raises(InvalidGrammar, match="MemoryError"):
        run_in_child(lambda: str(len(bytearray(2**32))))


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

    shelf = GrammarShelf(lambda schema: schema, lambda text: True, compile_)
    assert shelf.of_gbnf("good") is shelf.of_gbnf("good")
    for _ in range(2):
        with pytest.raises(InvalidGrammar):
            shelf.of_gbnf("bad")
    assert compiled == ["good", "bad"]
