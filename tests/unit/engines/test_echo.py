"""The echo engine's programme: what its directives do, and that it keeps the engine's contract of classes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from metamusesd.engines.base import EngineSpec, Finished, Task, Token
from metamusesd.engines.echo import EchoEngine
from metamusesd.errors import ContextOverflow, InvalidRequest, NoCapacity
from metamusesd.job import Priority, parse_request

HANDLES = itertools.count(1)


def engine(**values: Any) -> EchoEngine:
    return EchoEngine(EngineSpec("echo", "echo", **values))


def task(query: str, priority: Priority = Priority.NORMAL, **params: Any) -> Task:
    return Task(next(HANDLES), parse_request({"user_query": query, "params": params}), priority)


def run(echo: EchoEngine, work: Task) -> tuple[str, Finished]:
    """The whole text and the end."""
    echo.admit(echo.prepare(work))
    text = ""
    while True:
        for event in echo.step():
            if isinstance(event, Token):
                text += event.text
            else:
                assert isinstance(event, Finished)
                return text, event


@pytest.mark.parametrize(
    ("query", "params", "text", "reason"),
    [
        ("one two three", {}, "one two three", "stop"),
        ("one two three", {"max_tokens": 2}, "one two", "length"),
        ("one two", {"max_tokens": 5, "ignore_eos": True}, "one two one two one", "length"),
        ("one two !tokens=5", {}, "one two one two one", "stop"),
        ("!tokens=2", {}, "word word", "stop"),
        ("!delay=1ms hi", {}, "hi", "stop"),
        ("!unknown hi", {}, "!unknown hi", "stop"),
        ("!leak=1KB", {}, "", "stop"),
        ("!leak=1KB", {"ignore_eos": True}, "", "stop"),
    ],
)
def test_says_the_words(query: str, params: dict[str, Any], text: str, reason: str) -> None:
    """The words of the query are the tokens; directives are not said."""
    said, finished = run(engine(), task(query, **params))
    assert (said, finished.reason) == (text, reason)
    assert finished.completion_tokens == len(text.split())


def test_options_are_defaults() -> None:
    """The specification's options programme every query, and the query's own directives win."""
    echo = engine(options={"tokens": 3})
    assert run(echo, task("a"))[0] == "a a a"
    assert run(echo, task("a !tokens=1"))[0] == "a"


def test_prefill_takes_steps() -> None:
    """`!prefill` delays the first word by steps that yield nothing, and shows on the board meanwhile."""
    echo = engine()
    echo.admit(echo.prepare(task("hi !prefill=8ms")))
    assert echo.step() == []
    assert echo.statistics().queued_prompt_tokens > 0


def test_fails_on_demand() -> None:
    """`!fail=step2` ends with a retryable error after one word."""
    said, finished = run(engine(), task("a b !fail=step2"))
    assert said == "a"
    assert finished.error is not None
    assert finished.error["retryable"]


def test_refuses_on_demand() -> None:
    """`!refuse` and a directive that is none are errors of prepare."""
    for query in ("!refuse", "!delay=soon"):
        with pytest.raises(InvalidRequest):
            engine().prepare(task(query))


def test_overflow_is_known_before_any_work() -> None:
    """A prompt of as many words as the context is a typed error."""
    with pytest.raises(ContextOverflow):
        engine(context=64).prepare(task("word " * 64))


def test_slots_and_reserve() -> None:
    """Lower classes fill the slots only; a higher one gets in over them, as long as there is reserve."""
    echo = engine(slots=2, reserve_slots=1)
    for _ in range(2):
        echo.admit(echo.prepare(task("a b c", Priority.LOW)))
    with pytest.raises(NoCapacity):
        echo.admit(echo.prepare(task("a", Priority.LOW)))
    echo.admit(echo.prepare(task("a", Priority.HIGH)))
    with pytest.raises(NoCapacity):
        echo.admit(echo.prepare(task("a", Priority.CRITICAL)))
    assert echo.statistics().slots_used == 3
    assert echo.statistics().preempted == 1


def test_higher_classes_run_first() -> None:
    """A full batch of low sequences yields a place to a critical one, and goes on afterwards."""
    echo = engine(slots=1, reserve_slots=1)
    low, critical = task("a b", Priority.LOW), task("x y", Priority.CRITICAL)
    echo.admit(echo.prepare(low))
    echo.admit(echo.prepare(critical))
    order = [event.handle for _ in range(4) for event in echo.step() if isinstance(event, Token)]
    assert order == [critical.handle] * 2 + [low.handle] * 2


def test_params_are_kept() -> None:
    """max_tokens of the request bounds Prepared.max_tokens, and the context does."""
    echo = engine(context=64, default_max_tokens=1000)
    assert echo.prepare(task("a b c d")).max_tokens == 60
    assert echo.prepare(task("a", max_tokens=7)).max_tokens == 7
