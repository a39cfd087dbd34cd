"""An idle dispatcher does its rounds more seldom, and is quick again as soon as anybody comes."""

from __future__ import annotations

import asyncio
import time

import pytest

from metamusesd.dispatcher import rounds as module
from metamusesd.dispatcher.rounds import BEAT_S, QUIET_AFTER_S, QUIET_BEAT_S, Rounds
from metamusesd.dispatcher.router import TierView
from metamusesd.errors import QueueUnavailable
from tests.unit.dispatcher.stage import Stage


def rounds_of(stage: Stage) -> Rounds:
    return Rounds(stage.dispatcher, stage.queue, "host:1", ["fast"], 15_000, 10.0)


def rests(rounds: Rounds) -> float:
    return rounds.rest_s(BEAT_S, QUIET_BEAT_S)


def idle_for_long(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.monotonic() + QUIET_AFTER_S + 1
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)


async def test_quiet_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds are quick at first; when nothing has happened for QUIET_AFTER_S, they rest longer."""
    stage = Stage(tiers=[TierView("fast", "m")])
    rounds = rounds_of(stage)
    stage.dispatcher.ledger.redis(None)
    assert rests(rounds) == BEAT_S
    idle_for_long(rounds, monkeypatch)
    assert rests(rounds) == QUIET_BEAT_S
    await stage.close()


@pytest.mark.parametrize("busy", [True, False])
async def test_work_ends_the_quiet(monkeypatch: pytest.MonkeyPatch, busy: bool) -> None:
    """A job that is held or waits ends the quiet; so does one that was claimed and answered between two looks."""
    stage = Stage(tiers=[TierView("fast", "m")])
    rounds = rounds_of(stage)
    stage.dispatcher.ledger.redis(None)
    idle_for_long(rounds, monkeypatch)
    stage.dispatcher.ledger.claims += not busy
    rounds.notice(busy)
    assert rests(rounds) == BEAT_S
    await stage.close()


async def test_a_job_that_waits_is_seen_by_the_survey(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that nobody takes, because there is no worker, keeps the rounds quick."""
    stage = Stage(tiers=[TierView("fast", "m")])
    rounds = rounds_of(stage)
    stage.dispatcher.ledger.redis(None)
    id = await stage.submit()
    await stage.state(id, "ready")
    rounds._claims = stage.dispatcher.ledger.claims
    idle_for_long(rounds, monkeypatch)
    assert rests(rounds) == QUIET_BEAT_S
    await rounds._survey()
    assert rests(rounds) == BEAT_S
    await stage.close()


async def test_no_quiet_without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """While Redis is away the rounds stay quick: its return is to be seen soon."""
    stage = Stage(tiers=[TierView("fast", "m")])
    rounds = rounds_of(stage)
    idle_for_long(rounds, monkeypatch)
    stage.dispatcher.ledger.redis(QueueUnavailable("away"))
    assert rests(rounds) == BEAT_S
    await asyncio.wait_for(stage.close(), 5)
