"""What every engine promises to the step loop, held against each of them; see engines/base.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from metamusesd.engines.base import EngineSpec, Finished, Task, Token
from metamusesd.engines.choice import make_engine
from metamusesd.errors import ContextOverflow, ModelLoadFailed, NoCapacity
from metamusesd.job import InferenceRequest, Params, Priority
from tests.contract.engine_rig import Run, answer, make_any
from tests.contract.made_gguf import MAKERS

KINDS = ["echo", "llamacpp", "llamacpp-q8_0", *(f"llamacpp-{architecture}" for architecture in MAKERS), "mistralrs"]


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = make_any(request.param, tmp_path_factory.mktemp("model"))
    yield made
    made.close()
    made.close()


@pytest.fixture
def engine(loaded: Any) -> Iterator[Any]:
    yield loaded
    Run(loaded).finish()


def words(count: int) -> str:
    return " ".join(f"word{number}" for number in range(count))


def test_an_unknown_engine_is_a_permanent_error() -> None:
    """A specification that nobody can load says so."""
    with pytest.raises(ModelLoadFailed, match="use llamacpp, mistralrs, echo"):
        make_engine(EngineSpec("nonsense", "x"))


def test_idle_is_not_busy(engine: Any) -> None:
    """Nothing admitted: nothing to step for, also after prepare alone."""
    engine.prepare(Task(1, InferenceRequest(user_query="hello"), Priority.NORMAL))
    assert not engine.busy()
    assert engine.step() == []


def test_a_batch_ends_each_sequence_once(engine: Any) -> None:
    """Every admitted sequence has exactly one Finished, as its last event, and only its first token says `first`."""
    run = Run(engine)
    handles = [run.admit("one two three"), run.admit("four five")]
    run.finish()
    assert {event.handle for event in run.events} == set(handles)
    for handle in handles:
        *tokens, last = run.of(handle)
        assert isinstance(last, Finished)
        assert last.error is None
        assert [token.first for token in tokens if isinstance(token, Token)] == [True] + [False] * (len(tokens) - 1)
        assert last.completion_tokens == sum(token.tokens for token in tokens if isinstance(token, Token))
        assert last.prompt_tokens > 0
    assert engine.statistics().slots_used == 0


def test_max_tokens_is_kept(engine: Any) -> None:
    """An answer that would go on ends after as many tokens as were asked for, and says that it was cut."""
    run = Run(engine)
    handle = run.admit(words(3), params={"max_tokens": 5, "ignore_eos": True})
    end = run.finish().end(handle)
    assert (end.reason, end.completion_tokens) == ("length", 5)


@pytest.mark.parametrize("loaded", ["echo", "mistralrs"], indirect=True)  # llamacpp: close calls, see its engine.py
def test_the_same_request_says_the_same(engine: Any) -> None:
    """Deterministic, whatever else is in the batch."""
    alone = answer(engine, "a b c d")
    run = Run(engine)
    beside = run.admit("a b c d")
    run.admit("noise noise")
    assert run.finish().text(beside) == alone


def test_a_cancelled_sequence_is_silent(engine: Any) -> None:
    """After cancel no event of the handle follows, its slot is free, and a second cancel finds nothing."""
    run = Run(engine)
    handle = run.admit(words(4), params={"max_tokens": 60, "ignore_eos": True})
    run.until_first(handle)
    assert engine.cancel(handle)
    assert not engine.cancel(handle)
    assert engine.statistics().slots_used == 0
    before, other = run.of(handle), run.admit("now there is room")
    run.finish()
    assert run.of(handle) == before
    assert run.end(other).error is None


def test_no_capacity_changes_nothing(engine: Any) -> None:
    """A refused admit leaves the others as they were."""
    run = Run(engine)
    handles = [run.admit("one two"), run.admit("three four")]
    with pytest.raises(NoCapacity):
        run.admit("too many")
    run.finish()
    assert {event.handle for event in run.events} == set(handles)


def test_an_overflow_is_a_typed_error_before_any_work(engine: Any) -> None:
    """A prompt over the context is refused by prepare, with both numbers."""
    with pytest.raises(ContextOverflow) as caught:
        Run(engine).admit(words(200))
    assert caught.value.fields["context"] == 128 < caught.value.fields["prompt_tokens"]
    assert not engine.busy()


def test_max_tokens_is_clipped_to_the_context(engine: Any) -> None:
    """An answer may not be longer than the context leaves room for."""
    request = InferenceRequest(user_query="hi", params=Params(max_tokens=100_000))
    prepared = engine.prepare(Task(1, request, Priority.NORMAL))
    assert prepared.prompt_tokens + prepared.max_tokens == 128


def test_a_higher_class_gets_in_over_a_full_batch(engine: Any) -> None:
    """The reserve is for those of a higher class; whoever was there before ends as well."""
    run = Run(engine)
    handles = [run.admit("one two", Priority.LOW), run.admit("three four", Priority.LOW)]
    with pytest.raises(NoCapacity):
        run.admit("five six", Priority.LOW)
    handles.append(run.admit("five six", Priority.CRITICAL))
    run.finish()
    assert [run.end(handle).error for handle in handles] == [None] * 3


def test_a_promoted_sequence_counts_as_what_it_became(engine: Any) -> None:
    """After promote, a job of the old higher class finds the slots taken by its equals."""
    run = Run(engine)
    for query in ("one two", "three four"):
        engine.promote(run.admit(query, Priority.LOW, params={"max_tokens": 4}), Priority.HIGH)
    engine.promote(0, Priority.HIGH)
    with pytest.raises(NoCapacity):
        run.admit("five six", Priority.HIGH)
    run.finish()


def test_a_full_batch_of_aged_ones_has_no_room(engine: Any) -> None:
    """Aged sequences do not give way, not even to a critical one."""
    run = Run(engine)
    for query in ("one two", "three four"):
        run.admit(query, Priority.LOW, aged=True)
    with pytest.raises(NoCapacity):
        run.admit("late", Priority.CRITICAL)
    run.finish()


def test_statistics_are_sums(engine: Any) -> None:
    """Tokens are counted as they were said, prompts when they have been computed, and slots while they are taken."""
    before, run = engine.statistics(), Run(engine)
    handle = run.admit("nobody asked this before")
    assert engine.statistics().slots_used == 1
    end, now = run.finish().end(handle), engine.statistics()
    assert now.generated_tokens - before.generated_tokens == end.completion_tokens
    assert 0 < now.prompt_tokens - before.prompt_tokens <= end.prompt_tokens
    assert (now.slots_used, now.queued_prompt_tokens) == (0, 0)
