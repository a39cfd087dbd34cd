"""The supervisor's pure rules: restart, lifecycle. Hangs: test_watchdog.py."""

from __future__ import annotations

import pytest

from metamusesd.board import Board, SlotStatus
from metamusesd.supervisor.restart import (
    BOOT_LIMIT,
    EXPLAINED_MOST_S,
    Again,
    Died,
    GiveUp,
    Policy,
    decide,
    is_explained,
)
from metamusesd.supervisor.slot import MOVES, Slot, exit_text
from metamusesd.supervisor.spec import ChildSpec, Kind

BUDGET = Policy(limit=3, window_s=60, backoff_s=0.1, backoff_most_s=30.0)


def died(*at_s: float, explained: bool = False) -> list[Died]:
    return [Died(each, explained) for each in at_s]


def after_s(deaths: list[Died], chance: float = 1.0, budget: Policy = BUDGET, **more: bool) -> float:
    verdict = decide(budget, deaths, permanent=False, boot_deaths=0, chance=chance, **more)
    assert isinstance(verdict, Again)
    return verdict.after_s


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
    assert after_s(died(*deaths_s), chance) == pytest.approx(pause_s)


def test_the_pause_has_a_ceiling():
    """However many deaths the budget allows, no pause is longer than the longest."""
    budget = Policy(limit=1000, window_s=60, backoff_s=0.1, backoff_most_s=1.0)
    assert after_s(died(*[100.0] * 900), budget=budget) == 1.0


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
    verdict = decide(BUDGET, died(*deaths_s), permanent=permanent, boot_deaths=boot_deaths, chance=0.5)
    assert isinstance(verdict, GiveUp)
    assert why in verdict.reason


def test_a_limit_of_zero_restarts_nothing():
    """restart_limit = 0: the first death is the last, explained or not."""
    budget = Policy(limit=0, window_s=60, backoff_s=0.1, backoff_most_s=1.0)
    for explained in (False, True):
        verdict = decide(budget, died(1.0, explained=explained), permanent=False, boot_deaths=0, chance=0)
        assert isinstance(verdict, GiveUp)


def test_explained_deaths_cost_a_short_pause_and_no_budget():
    """A hundred poison jobs in a row never give a worker up, and its pause stays at a second or less."""
    deaths = died(*[float(each) / 10 for each in range(100)], explained=True)
    assert after_s(deaths) == EXPLAINED_MOST_S
    assert after_s([*deaths, Died(10.0)]) == pytest.approx(0.1)  # the first that nothing explains


def test_redis_is_never_given_up_once_it_has_answered():
    """However often it dies while its disk is full, the next try comes, at most backoff_most_s later."""
    deaths = died(*[float(each) for each in range(50)])
    verdict = decide(BUDGET, deaths, permanent=False, boot_deaths=50, chance=1.0, keep=True)
    assert verdict == Again(30.0)


@pytest.mark.parametrize(
    ("life", "explained"),
    [
        ({"was_ready": True, "worked": True}, True),
        ({"was_ready": True, "worked": True, "hung": True}, True),
        ({"was_ready": True, "ready_for_s": 60.0}, True),
        ({"was_ready": True, "ready_for_s": 60.0, "hung": True}, False),
        ({"was_ready": True, "ready_for_s": 0.5}, False),
        ({"was_ready": False, "worked": True}, False),
        ({"was_ready": False, "killed": True}, True),
    ],
)
def test_what_explains_a_death(life, explained):
    """Work that it was given, a steady life, or a kill from outside; nothing else."""
    plain = {"was_ready": False, "worked": False, "ready_for_s": 0.0, "killed": False, "hung": False}
    assert is_explained(**plain | life) is explained


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
