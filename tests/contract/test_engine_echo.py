"""What every engine promises to the step loop, held against the echo engine; see engines/base.py."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from metamusesd.engines.base import Engine, EngineSpec, Finished, Task, Token
from metamusesd.engines.choice import make_engine
from metamusesd.errors import ContextOverflow, ModelLoadFailed, NoCapacity
from metamusesd.job import Priority, parse_request

HANDLES = itertools.count(1)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = make_engine(EngineSpec("echo", "echo", slots=2, reserve_slots=1, context=128))
    yield made
    made.close()
    made.close()


def task(query: str, priority: Priority = Priority.NORMAL, aged: bool = False) -> Task:
    return Task(next(HANDLES), parse_request({"user_query": query}), priority, aged)


def events_of(engine: Engine) -> dict[int, list[Token | Finished]]:
    """Step until nothing is left; the events of every handle in order."""
    found: dict[int, list[Token | Finished]] = {}
    while engine.busy():
        for event in engine.step():
            found.setdefault(event.handle, []).append(event)
    return found


def test_an_unknown_engine_is_a_permanent_error() -> None:
    """A specification that nobody can load says so."""
    with pytest.raises(ModelLoadFailed):
        make_engine(EngineSpec("nonsense", "x"))


def test_idle_is_not_busy(engine: Engine) -> None:
    """Nothing admitted: nothing to step for, also after prepare alone."""
    engine.prepare(task("hello"))
    assert not engine.busy()


def test_a_batch_ends_each_sequence_once(engine: Engine) -> None:
    """Every admitted sequence has exactly one Finished, as its last event, and only its first token says `first`."""
    works = [task("one two three"), task("four five")]
    for work in works:
        engine.admit(engine.prepare(work))
    found = events_of(engine)
    assert set(found) == {work.handle for work in works}
    for events in found.values():
        tokens, last = events[:-1], events[-1]
        assert isinstance(last, Finished)
        assert [token.first for token in tokens if isinstance(token, Token)] == [True] + [False] * (len(tokens) - 1)
        assert last.completion_tokens == sum(token.tokens for token in tokens if isinstance(token, Token))
    assert engine.statistics().slots_used == 0


def test_the_same_request_says_the_same(engine: Engine) -> None:
    """Deterministic, whatever else is in the batch."""
    alone = task("a b c d")
    engine.admit(engine.prepare(alone))
    said_alone = [event.text for event in events_of(engine)[alone.handle] if isinstance(event, Token)]
    beside = task("a b c d")
    engine.admit(engine.prepare(beside))
    engine.admit(engine.prepare(task("noise noise")))
    assert [event.text for event in events_of(engine)[beside.handle] if isinstance(event, Token)] == said_alone


def test_a_cancelled_sequence_is_silent(engine: Engine) -> None:
    """After cancel no event of the handle follows, its slot is free, and a second cancel finds nothing."""
    work = task("one two three")
    engine.admit(engine.prepare(work))
    engine.step()
    assert engine.cancel(work.handle)
    assert not engine.cancel(work.handle)
    assert work.handle not in events_of(engine)
    assert engine.statistics().slots_used == 0


def test_no_capacity_changes_nothing(engine: Engine) -> None:
    """A refused admit leaves the others as they were."""
    works = [task("one two"), task("three four")]
    for work in works:
        engine.admit(engine.prepare(work))
    with pytest.raises(NoCapacity):
        engine.admit(engine.prepare(task("too many")))
    assert set(events_of(engine)) == {work.handle for work in works}


def test_an_overflow_is_a_typed_error_before_any_work(engine: Engine) -> None:
    """A prompt over the context is refused by prepare."""
    with pytest.raises(ContextOverflow):
        engine.prepare(task("word " * 200))
    assert not engine.busy()


def test_a_higher_class_gets_in_over_a_full_batch(engine: Engine) -> None:
    """The reserve is for those that may pre-empt; the pre-empted ones finish as well."""
    works = [task("one two", Priority.LOW), task("three four", Priority.LOW), task("five six", Priority.CRITICAL)]
    for work in works:
        engine.admit(engine.prepare(work))
    assert all(isinstance(events[-1], Finished) for events in events_of(engine).values())


def test_an_aged_sequence_is_not_pre_empted(engine: Engine) -> None:
    """It goes on beside a critical one, and a full batch of aged ones has no room for that one."""
    low, aged = task("one two", Priority.LOW), task("three four", Priority.LOW, aged=True)
    critical = task("five six", Priority.CRITICAL)
    for work in (low, aged, critical):
        engine.admit(engine.prepare(work))
    assert {event.handle for event in engine.step()} == {aged.handle, critical.handle}
    events_of(engine)
    for work in (task("a b", Priority.LOW, aged=True), task("c d", Priority.LOW, aged=True)):
        engine.admit(engine.prepare(work))
    with pytest.raises(NoCapacity):
        engine.admit(engine.prepare(task("late", Priority.CRITICAL)))
    events_of(engine)
