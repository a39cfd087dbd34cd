"""The scheduler: pure functions from what workers hold to what to claim and whom to give it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamusesd.dispatcher.places import Option, Order, place
from metamusesd.dispatcher.scheduler import WorkerLoad, standing, wants
from metamusesd.job import Priority
from metamusesd.queues.base import Claim, Want

LOW, NORMAL, HIGH, CRITICAL = Priority
CLAIM = Claim("a", "1:1", "fast", NORMAL, 1, 0, b"{}", b"", "default", True, 0, 0, 0)

loads = st.builds(
    WorkerLoad,
    slots=st.integers(1, 8),
    reserve_slots=st.integers(0, 4),
    by_class=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    prompt_tokens=st.integers(0, 1000),
    prefill_rate=st.floats(0, 1e4),
    decode_rate=st.floats(0, 1e3),
)


def pick(workers: Sequence[WorkerLoad], priority: int, prompt_tokens: int, tokens: int, warm: int = -1) -> int | None:
    """The index of the worker that gets such a job, in one tier."""
    options = [Option(f"w{index}", "fast", load, index == warm) for index, load in enumerate(workers)]
    placed = place(options, Order(priority, prompt_tokens, {"fast": float(tokens)}, "fast", 0.2))
    return placed[0] if placed else None


@pytest.mark.parametrize(
    ("by_class", "priority", "room"),
    [
        ([0, 0, 0, 0], LOW, 2),
        ([2, 0, 0, 0], LOW, 0),
        ([2, 0, 0, 0], CRITICAL, 1),
        ([2, 0, 0, 1], CRITICAL, 0),
        ([0, 0, 0, 2], CRITICAL, 0),
        ([1, 0, 0, 1], NORMAL, 1),
        ([1, 0, 0, 1], LOW, 0),
    ],
)
def test_room(by_class: list[int], priority: int, room: int) -> None:
    """Two slots and one in reserve: a higher class gets in over a full batch of lower ones, up to the reserve."""
    assert WorkerLoad(2, 1, by_class).room(priority) == room


def test_a_closed_worker_has_no_room() -> None:
    """A worker that is kept for one job takes nobody; one that has refused a class takes only higher ones."""
    assert WorkerLoad(2, 1, closed=True).room(CRITICAL) == 0
    assert WorkerLoad(2, 1, refused=HIGH).room(HIGH) == 0
    assert WorkerLoad(2, 1, refused=HIGH).room(CRITICAL) == 2


def test_wants_of_an_idle_worker() -> None:
    """Free slots are for everybody; there is no more for higher classes while nothing runs."""
    assert wants({"fast": [WorkerLoad(4, 2)]}) == [Want("fast", 4, 0)]


def test_wants_over_a_full_batch() -> None:
    """Full of low jobs: nothing for low ones, the reserve for those above."""
    assert wants({"fast": [WorkerLoad(4, 2, [4, 0, 0, 0])]}) == [Want("fast", 2, 1)]


def test_wants_nothing_when_full() -> None:
    """No room, no want: a claim for it would only wake us again."""
    assert wants({"fast": [WorkerLoad(4, 0, [0, 4, 0, 0])], "heavy": []}) == []


def test_picks_the_emptier_of_equals() -> None:
    """With equal rates the worker with fewer neighbours finishes first."""
    busy = WorkerLoad(4, 0, [0, 3, 0, 0], decode_rate=100)
    assert pick([busy, WorkerLoad(4, 0, decode_rate=100)], NORMAL, 10, 100) == 1


def test_picks_the_faster() -> None:
    """A worker three times as fast wins although it has one neighbour."""
    fast = WorkerLoad(4, 0, [0, 1, 0, 0], decode_rate=300)
    assert pick([WorkerLoad(4, 0, decode_rate=100), fast], NORMAL, 10, 100) == 1


def test_prefers_a_warm_prefix() -> None:
    """With a long prompt, the worker that knows its beginning wins."""
    pair = [WorkerLoad(4, 0, prefill_rate=200), WorkerLoad(4, 0, prefill_rate=200)]
    assert pick(pair, NORMAL, 1000, 10, warm=1) == 1


def test_counts_prompts_that_wait() -> None:
    """Prompt tokens that were sent and not computed yet delay a new job."""
    pair = [WorkerLoad(4, 0, prompt_tokens=5000), WorkerLoad(4, 0)]
    assert pick(pair, NORMAL, 10, 10) == 1


def test_lower_classes_are_no_neighbours() -> None:
    """A critical job does not mind a batch of low ones: they yield to it."""
    low = WorkerLoad(4, 4, [4, 0, 0, 0])
    assert pick([WorkerLoad(4, 4, [0, 0, 0, 2]), low], CRITICAL, 10, 100) == 1


@given(st.lists(loads, max_size=4), st.sampled_from(Priority), st.integers(0, 4000), st.integers(1, 4000))
def test_picks_somebody_with_room_or_nobody(
    workers: list[WorkerLoad], priority: int, prompt_tokens: int, max_tokens: int
) -> None:
    """Whoever is picked has room; nobody is picked only when nobody has."""
    found = pick(workers, priority, prompt_tokens, max_tokens)
    if found is None:
        assert not any(worker.room(priority) for worker in workers)
    else:
        assert workers[found].room(priority) > 0


@given(st.lists(loads, min_size=1, max_size=4), st.lists(st.sampled_from(Priority), max_size=60))
def test_all_that_is_claimed_finds_a_place(workers: list[WorkerLoad], queue: list[Priority]) -> None:
    """Jobs claimed from the head of a queue by these wants can all be placed, highest class first."""
    waiting = sorted(queue, reverse=True)
    claimed: list[Priority] = []
    for want in wants({"fast": workers}):
        taken = [priority for priority in waiting if priority >= want.floor][: want.count]
        claimed += taken
        for priority in taken:
            waiting.remove(priority)
    for priority in claimed:
        found = pick(workers, priority, 10, 10)
        assert found is not None
        workers[found].by_class[priority] += 1


def test_an_aged_job_stands_with_the_highest() -> None:
    """Nobody pre-empts an aged low job, so a worker full of them has no room for a critical one."""
    aged = replace(CLAIM, priority=LOW, aged=True)
    assert standing(aged) == CRITICAL
    assert standing(replace(aged, aged=False)) == LOW
    load = WorkerLoad(2, 1)
    load.by_class[standing(aged)] += 2
    assert load.room(CRITICAL) == load.room(LOW) == 0


def test_a_job_leaves_its_home_for_a_real_gain_only() -> None:
    """Another tier's worker has to be finished sooner by the margin; the record says which one it was, and why."""
    home, other = WorkerLoad(4, 0, decode_rate=100), WorkerLoad(4, 0, decode_rate=110)
    options = [Option("fast-0", "fast", home), Option("medium-0", "medium", other)]
    order = Order(NORMAL, 0, {"fast": 100.0, "medium": 100.0}, "fast", 0.2)
    found = place(options, order)
    assert found is not None and found[0] == 0 and found[1].reason == "earliest finish"
    home.by_class[NORMAL] = 1
    found = place(options, order)
    assert found is not None and found[0] == 1
    assert found[1].reason == "medium is sooner than fast"
    assert [(seen.worker, seen.finish_s) for seen in found[1].loads] == [("medium-0", 0.909), ("fast-0", 2.0)]


@given(st.lists(loads, max_size=6), st.lists(st.tuples(st.booleans(), st.integers(-1, 3)), min_size=6, max_size=6))
def test_wants_are_the_sums_of_the_rooms(workers: list[WorkerLoad], states: list[tuple[bool, int]]) -> None:
    """What is asked for, class by class, is what the workers could take, closed and refusing ones included."""
    for worker, (closed, refused) in zip(workers, states, strict=False):
        worker.closed, worker.refused = closed, refused
    asked, found = 0, []
    for floor in Priority:
        room = sum(worker.room(floor) for worker in workers)
        if room > asked:
            found.append(Want("fast", room - asked, floor))
            asked = room
    assert wants({"fast": workers}) == found
