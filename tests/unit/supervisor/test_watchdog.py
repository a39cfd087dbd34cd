"""Hung, or only slow? Traces of a child's life, looked at four times a second, against the rule."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from metamusesd.board import VECTORS_FIELDS, WORKER_FIELDS, WorkerState
from metamusesd.supervisor.watchdog import (
    BUSY,
    STEP_S_MOST,
    TENDING_S,
    Doing,
    Patience,
    Sight,
    Watch,
    dispatcher_sight,
    limit_s,
    look,
    vectors_sight,
    verdict,
    worker_sight,
)

TICK_S = 0.25
PATIENCE = Patience(hang_s=30.0, least_s=5.0)


def row(**fields: int) -> dict[str, int]:
    return dict.fromkeys(WORKER_FIELDS, 0) | fields


def stepping(steps: int, at_s: float, doing: Doing = Doing.DECODE, **more: object) -> Sight:
    return Sight(doing, (steps, int(at_s * 1e9)), steps, int(at_s * 1e9), **more)  # type: ignore[arg-type]


def life(took_s: Iterable[float], **more: object) -> list[tuple[float, Sight]]:
    """A worker whose steps take so long, looked at every tick until the last one is done."""
    ends_s, now_s, steps = [1000.0], 1000.0, 0
    for each in took_s:
        ends_s.append(ends_s[-1] + each)
    seen = []
    while now_s <= ends_s[-1] + TICK_S:
        steps = bisect_right(ends_s, now_s) - 1
        seen.append((now_s, stepping(steps, ends_s[steps], **more)))
        now_s += TICK_S
    return seen


def watching(looks: Iterable[tuple[float, Sight]], watch: Watch | None = None) -> Iterator[tuple[float, Watch]]:
    watch = watch or Watch()
    for now_s, sight in looks:
        watch = look(watch, sight, now_s)
        yield now_s, watch


def end_of(looks: Iterable[tuple[float, Sight]], watch: Watch | None = None) -> Watch:
    return list(watching(looks, watch))[-1][1]


def hung_after_s(watch: Watch, sight: Sight, cpu_share: float = 0.0, tick_s: float = TICK_S) -> float:
    """It stands still from now on: after how long it is called hung."""
    start_s = now_s = watch.looked_s
    cpu_s = sight.cpu_s
    while not verdict(watch, PATIENCE):
        now_s, cpu_s = now_s + tick_s, cpu_s + cpu_share * tick_s
        watch = look(watch, replace(sight, cpu_s=cpu_s), now_s)
        assert now_s - start_s < 2000, "never called hung"
    return now_s - start_s


def test_who_stands_still_is_found_by_its_own_rate():
    """Steps of 50 ms: five seconds are enough; steps of one second: twenty; never less than the floor."""
    for step_s, found_s in ((0.05, 5), (0.001, 5), (0.5, 10), (1.0, 20)):
        watch = end_of(life([step_s] * int(20 / step_s)))
        assert hung_after_s(watch, watch.last) == pytest.approx(found_s, abs=3 * TICK_S), step_s


def test_before_anything_is_learnt_hang_s_is_the_patience():
    """Two steps teach nothing yet; twenty times a step that is longer than that is more."""
    watch = end_of(life([0.05] * 2))
    assert hung_after_s(watch, watch.last) == pytest.approx(30, abs=2 * TICK_S)
    watch = end_of(life([0.05] * 2, step_s=5.0))
    assert hung_after_s(watch, watch.last) == pytest.approx(100, abs=2 * TICK_S)


def test_steps_that_grow_are_slow_and_not_hung():
    """From 20 ms, half as long again each time, up to 40 s a step: never called hung."""
    trace = life([min(40.0, 0.02 * 1.5**step) for step in range(30)])
    assert [verdict(watch, PATIENCE) for _, watch in watching(trace) if verdict(watch, PATIENCE)] == []


def test_a_single_long_step_is_remembered_for_a_while():
    """After a step of four seconds among short ones, six seconds of silence are no hang; much later they are again."""
    watch = end_of(life([0.05] * 100 + [4.0] + [0.05] * 20))
    assert limit_s(watch, PATIENCE) > 10
    assert limit_s(end_of([(now_s + 20, sight) for now_s, sight in life([0.05] * 40_000)], watch), PATIENCE) == 5


def test_who_computes_is_slow_up_to_a_larger_limit():
    """A worker that burns the CPU without a step has hang_s at least, four times its limit if that is more, no more."""
    quick, slow = end_of(life([0.05] * 400)), end_of(life([1.0] * 40))
    assert hung_after_s(quick, quick.last, cpu_share=1.0) == pytest.approx(30, abs=1)
    assert hung_after_s(slow, slow.last, cpu_share=1.0) == pytest.approx(BUSY * 20, abs=3)
    running = replace(slow.last, wants_cpu=True)
    assert "uses the CPU" in verdict(end_of([(now_s, running) for now_s in range(1100, 1300)], slow), PATIENCE)


def test_who_wants_the_cpu_and_gets_none_is_slow_as_well():
    """Runnable without a share: a starved host kills nobody after five seconds."""
    watch = end_of(life([0.05] * 400))
    assert hung_after_s(watch, replace(watch.last, wants_cpu=True)) == pytest.approx(30, abs=1)


def test_a_little_housekeeping_is_no_computing():
    """A heartbeat thread that uses one hundredth of a CPU does not make a hung worker look busy."""
    watch = end_of(life([0.05] * 400))
    assert hung_after_s(watch, watch.last, cpu_share=0.01) == pytest.approx(5, abs=1)


def test_a_stopped_child_has_the_shortest_patience():
    """SIGSTOP explains nothing: not the lack of a learnt pace, not the time that it used before."""
    watch = end_of(life([0.05] * 2))
    assert hung_after_s(watch, replace(watch.last, stopped=True)) == pytest.approx(5, abs=2 * TICK_S)


@pytest.mark.parametrize("away_s", [1.5, 3.0, 60.0])
def test_time_in_which_nobody_looked_counts_as_a_glance(away_s):
    """A supervisor that is itself starved sees late, and every late look counts a quarter of a second only."""
    watch = end_of(life([0.05] * 400))
    assert hung_after_s(watch, watch.last, tick_s=away_s) >= 20 * away_s


def test_progress_resets_and_idleness_is_no_crime():
    """Only time with a debt and without a change counts; a child that owes nothing is never hung."""
    nothing = Sight(Doing.NOTHING)
    assert verdict(end_of([(now_s, nothing) for now_s in range(1000)]), PATIENCE) == ""
    assert end_of([(0, stepping(1, 1)), (1, stepping(1, 1)), (2, stepping(2, 2))]).idle_s == 0
    assert end_of([(0, stepping(1, 1)), (1, stepping(1, 1)), (2, stepping(1, 1))]).idle_s == 2


def beating(beats: int, every_s: float, doing: Doing = Doing.IDLE) -> list[tuple[float, Sight]]:
    looks = [(1000 + tick * TICK_S, int(tick * TICK_S / every_s)) for tick in range(int(beats * every_s / TICK_S) + 1)]
    return [(now_s, Sight(doing, (beat,), at_ns=int((1000 + beat * every_s) * 1e9))) for now_s, beat in looks]


def test_an_idle_worker_owes_its_heartbeat():
    """One beat a second: eight seconds without one. Slow beats never make it longer than hang_s."""
    for every_s, found_s in ((1.0, 8), (0.2, 5), (9.0, 30)):
        watch = end_of(beating(20, every_s))
        assert hung_after_s(watch, watch.last) == pytest.approx(found_s, abs=1), every_s


def test_a_patience_shorter_than_a_heartbeat_kills_no_idle_worker():
    """hang_s of one second, a beat every second: three of them at least, from the first one on."""
    short = Patience(hang_s=1.0, least_s=1.0)
    for beats in (1, 20):
        assert limit_s(end_of(beating(beats, 1.0)), short) == pytest.approx(3.0)


def test_a_dispatcher_that_computes_has_hang_s():
    """Its loop blocked by a computation: hang_s and not four times as long; asleep: its own pace."""
    watch = end_of([(now_s, dispatcher_sight(sight.at_ns)) for now_s, sight in beating(100, 0.25)])
    assert hung_after_s(watch, watch.last) == pytest.approx(5, abs=1)
    assert hung_after_s(watch, watch.last, cpu_share=1.0) == pytest.approx(30, abs=1)


def test_work_that_is_sent_to_a_silent_worker_does_not_renew_its_credit():
    """Silent for six seconds while idle, then sent a job: the six seconds still count."""
    watch = end_of(beating(20, 1.0))
    watch = end_of([(watch.looked_s + tick * TICK_S, watch.last) for tick in range(1, 25)], watch)
    watch = look(watch, Sight(Doing.TAKING, (9,)), watch.looked_s + TICK_S)
    assert watch.idle_s == pytest.approx(6.25, abs=0.5)


def test_a_first_job_has_the_whole_patience():
    """Frames unread and no step ever made: the first step may be long, hang_s. With a known pace: that."""
    fresh = look(end_of(beating(20, 1.0)), Sight(Doing.TAKING, (9,)), 1021)
    assert limit_s(fresh, PATIENCE) == 30
    known = end_of(beating(20, 1.0), Watch(paces=end_of(life([0.05] * 400)).paces))
    assert limit_s(look(known, Sight(Doing.TAKING, (9,)), 1021), PATIENCE) == 8


@pytest.mark.parametrize(
    ("fields", "owed", "doing"),
    [
        (None, 0, Doing.UNREADABLE),
        (row(), 0, Doing.NOTHING),
        (row(), 1, Doing.TAKING),
        (row(state=WorkerState.LOADING), 0, Doing.NOTHING),
        (row(state=WorkerState.LOADING, beat_ns=5), 0, Doing.LOADING),
        (row(state=WorkerState.IDLE, beat_ns=5), 0, Doing.IDLE),
        (row(state=WorkerState.IDLE, beat_ns=5, frames_received=2), 3, Doing.TAKING),
        (row(state=WorkerState.IDLE, beat_ns=5, frames_received=3), 3, Doing.IDLE),
        (row(state=WorkerState.TAKING, beat_ns=5, frames_received=3), 3, Doing.TAKING),
        (row(state=WorkerState.DECODE, beat_ns=5), 0, Doing.PREPARING),
        (row(state=WorkerState.DECODE, slots_used=1, frames_received=2), 3, Doing.DECODE),
        (row(state=WorkerState.PREFILL, slots_used=1), 0, Doing.PREFILL),
        (row(state=WorkerState.DECODE, preempted=1), 0, Doing.DECODE),
        (row(state=WorkerState.WAITING, slots_used=1, beat_ns=5), 3, Doing.IDLE),
    ],
)
def test_what_a_row_shows(fields, owed, doing):
    """The phase decides what is owed; a worker whose reader is slow owes no step."""
    assert worker_sight(fields, owed).doing is doing


def test_a_row_that_stays_unreadable_is_a_hang():
    """Its writer stands still in the middle of a write."""
    watch = look(end_of(life([0.05] * 400)), worker_sight(None, 0), 2000.0)
    assert hung_after_s(watch, watch.last) == pytest.approx(30, abs=1)


def test_an_absurd_figure_on_the_board_is_bounded():
    """A step time of centuries makes nobody immortal."""
    sight = worker_sight(row(state=WorkerState.DECODE, slots_used=1, step_ns=2**63), 0)
    assert sight.step_s == STEP_S_MOST


def vectors(**fields: int) -> Sight:
    return vectors_sight(dict.fromkeys(VECTORS_FIELDS, 0) | fields)


def test_what_the_block_of_vectors_shows():
    """Maintenance before questions, questions before the heartbeat, nothing before the first one."""
    assert vectors_sight(None).doing is Doing.UNREADABLE
    assert vectors().doing is Doing.NOTHING
    assert vectors(beat_ns=5).doing is Doing.SERVING
    assert vectors(beat_ns=5, oldest_ns=3).doing is Doing.ANSWERING
    assert vectors(beat_ns=5, oldest_ns=3, tending_ns=4).doing is Doing.TENDING


def test_a_question_that_never_ends_is_a_hang_though_the_heart_beats():
    """The oldest question is the same for hang_s; one that is followed by others is none."""
    stuck = [(1000 + tick * TICK_S, vectors(beat_ns=tick, oldest_ns=7)) for tick in range(130)]
    served = [(1000 + tick * TICK_S, vectors(beat_ns=tick, oldest_ns=tick // 40 + 1)) for tick in range(400)]
    assert verdict(end_of(stuck), PATIENCE)
    assert not any(verdict(watch, PATIENCE) for _, watch in watching(served))


def test_vectors_that_is_stopped_has_the_least_patience_whatever_it_was_at():
    """Also in the middle of its maintenance."""
    for fields in ({}, {"oldest_ns": 3}, {"tending_ns": 3}):
        watch = look(Watch(), vectors(beat_ns=5, **fields), 1000.0)
        assert hung_after_s(watch, replace(watch.last, stopped=True)) == pytest.approx(5, abs=1)


def test_maintenance_may_compute_for_long_and_stand_still_for_a_while():
    """Minutes of silence with the CPU in use are work; four times hang_s without it are a hang."""
    watch = look(Watch(), vectors(beat_ns=5, tending_ns=3), 1000.0)
    assert limit_s(watch, PATIENCE) == BUSY * 30
    busy = replace(watch, idle_s=600.0, last=replace(watch.last, cpu_s=600.0))
    assert limit_s(busy, PATIENCE) == TENDING_S
    assert not verdict(busy, PATIENCE)
