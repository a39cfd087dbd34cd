"""The outlook of one dispatcher: what it announces, whom it asks about, and whose deadline it refuses."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from metamusesd.dispatcher.forecast import LEAST_RATIOS, LEAST_RUNS
from metamusesd.dispatcher.outlook import Outlook
from metamusesd.dispatcher.rounds import Rounds
from metamusesd.dispatcher.router import TierView
from metamusesd.queues.base import Claim, Position, Routed, Service
from tests.unit.dispatcher.stage import Stage

CLAIM = Claim("a", "1:1", "fast", 1, 1, 0, b"{}", b"", "default", True, 0, 0, 0)
ROUTED = Routed("a", "1:1", ("fast",), b"{}")


def outlook() -> Outlook:
    return Outlook("here:1", [TierView("fast", "m")])


def starting(found: Outlook, hz: float) -> None:
    """So many starts a second were measured."""
    rate, now_s = found.forecast.tiers["fast"].rate, 0.0
    for _ in range(20):
        rate.started(1, True, now_s)
        now_s += 1 / hz
    rate.started(1, False, now_s)


def test_where_somebody_waits_no_place_is_free() -> None:
    """Places that are kept for higher classes, or were free a moment ago, are of no use to a job that waits."""
    found = outlook()
    starting(found, 4.0)
    assert found.services({"fast": 3})["fast"] == Service("m", 3, 4.0)
    found.heard([], [], {"fast"})
    assert found.services({"fast": 3})["fast"] == Service("m", 0, 4.0)
    assert found.services({"fast": 3})["fast"].free == 3
    assert found.services({})["fast"] == Service("m"), "without workers nothing is promised"


def test_a_waiting_newcomer_is_asked_about() -> None:
    """The first job that a call routed and did not take is sampled; its real wait becomes a ratio when it starts."""
    found = outlook()
    starting(found, 4.0)
    found.services({"fast": 0})
    found.heard([ROUTED], [CLAIM], set())
    assert not found.arrived.is_set(), "it started in the same call"
    found.heard([ROUTED, replace(ROUTED, id="b")], [CLAIM], {"fast"})
    assert found.arrived.is_set() and found.newcomer == "b"
    found.placed(Position("b", "ready", "fast", 7), "b")
    found.heard([], [replace(CLAIM, id="b")], {"fast"})
    assert len(found.forecast.tiers["fast"].ratios) == 1


def test_who_waits_nowhere_is_forgotten() -> None:
    """A sampled job that was cancelled, or started elsewhere, teaches nothing."""
    found = outlook()
    starting(found, 4.0)
    found.services({"fast": 0})
    for position in (None, Position("b", "running"), Position("b", "queued", "ingress", 3)):
        found.placed(Position("b", "ready", "fast", 7), "b")
        found.placed(position, "b")
        found.heard([], [replace(CLAIM, id="b")], {"fast"})
    assert not found.forecast.tiers["fast"].ratios


async def test_a_deadline_that_cannot_be_met() -> None:
    """Behind a long queue of its class a job with a short deadline fails at once and says when to come again; one
    without a deadline, one of a higher class and one with more time wait for their turn."""
    stage = Stage(tiers=[TierView("fast", "m")])
    found = stage.dispatcher.outlook
    tier = found.forecast.tiers["fast"]
    starting(found, 4.0)
    tier.ratios.extend([1.0] * LEAST_RATIOS)
    tier.runs.extend([(0.5, 10)] * LEAST_RUNS)
    for _ in range(80):
        await stage.submit()
    rounds = Rounds(stage.dispatcher, stage.queue, "host:1", ["fast"], 15_000, 10.0)
    rounds._free = lambda: {"fast": 0}  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        while (await stage.queue.depths(["fast"]))[0].by_class[1] < 80:
            await asyncio.sleep(0)
    await rounds._survey()
    refused = await stage.ended(await stage.submit(deadline_ms=5_000))
    assert refused.state == "failed" and refused.error is not None
    assert refused.error["code"] == "deadline_unmeetable"
    assert 14 < refused.error["retry_after_s"] < 17
    others: list[dict[str, Any]] = [{}, {"deadline_ms": 5_000, "priority": 3}, {"deadline_ms": 60_000}]
    for more in others:
        await stage.state(await stage.submit(**more), "ready")
    await stage.close()
