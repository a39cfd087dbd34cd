"""The supervisor's pure rules: restart, hang, lifecycle."""

from __future__ import annotations

import pytest

from metamusesd.board import WORKER_FIELDS, Board, SlotStatus
from metamusesd.supervisor import watchdog
from metamusesd.supervisor.restart import BOOT_LIMIT, Again, GiveUp, Policy, decide
from metamusesd.supervisor.slot import MOVES, Slot, exit_text
from metamusesd.supervisor.spec import ChildSpec, Kind

BUDGET = Policy(limit=3, window_s=60, backoff_s=0.1, backoff_most_s=1.0)


@pytest.mark.parametrize(
    ("deaths_s", "chance", "pause_s"),
    [
        ([100], 1.0, 0.1),
        ([100], 0.0, 0.05),
        ([99, 100], 1.0, 0.2),
        ([98, 99, 100], 1.0, 0.4),
        ([0, 1, 2, 3, 4, 5, 6, 100], 1.0, 0.1),
    ],
)
def test_pauses_double_and_old_deaths_are_forgiven(deaths_s, chance, pause_s):
    """The pause is base · 2ⁿ over the deaths in the window, and half of it is chance."""
    verdict = decide(BUDGET, deaths_s, 100, permanent=False, boot_deaths=0, chance=chance)
    assert isinstance(verdict, Again)
    assert verdict.after_s == pytest.approx(pause_s)


def test_the_pause_has_a_ceiling():
    """However many deaths the budget allows, no pause is longer than the longest."""
    budget = Policy(limit=1000, window_s=60, backoff_s=0.1, backoff_most_s=1.0)
    assert decide(budget, [100.0] * 900, 100, permanent=False, boot_deaths=0, chance=1.0) == Again(1.0)


@pytest.mark.parametrize(
    ("deaths_s", "permanent", "boot_deaths", "why"),
    [
        ([97, 98, 99, 100], False, 0, "4 times within 60 s"),
        ([100], True, 0, "permanent"),
        ([0, 50_000, 100_000], False, BOOT_LIMIT, "before it was ready"),
    ],
)
def test_some_children_are_given_up(deaths_s, permanent, boot_deaths, why):
    """A spent budget, a permanent error and a start that never works end the restarts, with the reason."""
    verdict = decide(BUDGET, deaths_s, deaths_s[-1], permanent=permanent, boot_deaths=boot_deaths, chance=0.5)
    assert isinstance(verdict, GiveUp)
    assert why in verdict.reason


def test_a_limit_of_zero_restarts_nothing():
    """restart_limit = 0: the first death is the last."""
    budget = Policy(limit=0, window_s=60, backoff_s=0.1, backoff_most_s=1.0)
    assert isinstance(decide(budget, [1.0], 1.0, permanent=False, boot_deaths=0, chance=0), GiveUp)


def row(**fields: int) -> dict[str, int]:
    return dict.fromkeys(WORKER_FIELDS, 0) | fields


@pytest.mark.parametrize(
    ("fields", "frames_sent", "owes"),
    [
        (row(), 0, False),
        (row(beat_ns=5), 0, True),
        (row(slots_used=1), 0, True),
        (row(preempted=1), 0, True),
        (row(frames_received=2), 3, True),
        (row(frames_received=3), 3, False),
        (None, 0, True),
    ],
)
def test_who_owes(fields, frames_sent, owes):
    """Sequences, unread frames and a heart that once beat are debts; an unreadable row is one too."""
    assert watchdog.worker_debt(fields, frames_sent)[1] is owes


def idle_after(looks: list[tuple[float, tuple[int, ...], bool]]) -> float:
    watch = watchdog.Watch()
    for now_s, seen, owes in looks:
        watch = watchdog.look(watch, seen, owes, now_s)
    return watchdog.idle_s(watch)


def test_progress_resets_the_watch_and_idleness_is_no_crime():
    """Only time with a debt and without a change counts."""
    assert idle_after([(0, (1,), True), (1, (1,), True), (2, (1,), True)]) == 2
    assert idle_after([(0, (1,), True), (1, (2,), True), (2, (2,), True)]) == 1
    assert idle_after([(0, (1,), False), (1, (1,), False), (2, (1,), False)]) == 0
    assert idle_after([(0, (1,), False), (1, (1,), True), (2, (1,), True)]) == 1


def test_time_in_which_nobody_looked_is_not_held_against_a_child():
    """After the supervisor was stopped for a minute, a child has its full patience again."""
    assert idle_after([(0, (1,), True), (1, (1,), True), (61, (1,), True), (62, (1,), True)]) == 2


def test_slow_models_get_more_patience():
    """Twenty of its own steps, if that is more; an absurd figure on the board is bounded."""
    assert watchdog.worker_limit_s(row(step_ns=5_000_000_000), 30) == 100
    assert watchdog.worker_limit_s(row(step_ns=1_000_000), 30) == 30
    assert watchdog.worker_limit_s(None, 30) == 30
    assert watchdog.worker_limit_s(row(step_ns=2**63), 30) == 20 * 60


def test_the_lifecycle_is_closed():
    """Every move leads to a status that the table knows, and every status can be stopped."""
    assert set(MOVES) == set(SlotStatus)
    for moves in MOVES.values():
        assert set(moves.values()) <= set(MOVES)
        assert "stop" in moves


def test_a_slot_writes_its_row():
    """What the table says is on the board: status, generation, restarts, cores, the last exit."""
    block = Board(1).slots[0]
    slot = Slot(ChildSpec("fast-0", Kind.WORKER, row=0), block)
    slot.started(4711, None)
    slot.ready()
    slot.buried(9)
    slot.move("died")
    fields = block.read()
    assert (fields["status"], fields["pid"], fields["generation"]) == (SlotStatus.BACKOFF, 0, 1)
    assert fields["last_exit"] == 2**64 - 9
    slot.started(4712, None)
    assert (slot.restarts, block.read()["restarts"]) == (1, 1)


def test_a_move_that_is_not_in_the_table_raises():
    """A stopped child is not ready."""
    slot = Slot(ChildSpec("fast-0", Kind.WORKER))
    slot.move("stop")
    with pytest.raises(KeyError):
        slot.move("ready")


@pytest.mark.parametrize(
    ("code", "text"), [(None, "none"), (0, "exit 0"), (-11, "killed by SIGSEGV"), (-63, "signal 63")]
)
def test_exit_codes_for_people(code, text):
    """A signal has its name."""
    assert text in exit_text(code)
