"""Load-aware tiers: where a job waits, and which tier serves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from metamusesd.job import Result
from metamusesd.queues.base import INGRESS, Depth, Host, Limits, Service
from metamusesd.tiers import TIERS
from metamusesd.wire import Finished, Frame, Token
from tests.unit.dispatcher.stage import PlayedWorker, Stage


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    yield stage
    await stage.close()


async def answer(worker: PlayedWorker) -> str:
    [order] = await worker.orders()
    await worker.send(
        Frame.EVENTS, [Token(order.handle, "x", 1, True), Finished(order.handle, "stop", completion_tokens=1)]
    )
    return order.id


def busy(stage: Stage, tier: str, waiting: int, hz: float) -> None:
    """So many wait there, and so many start in a second; nothing is free."""
    outlook = stage.dispatcher.outlook
    outlook.hosts.own[tier] = replace(Service("m"), free=0, start_hz=hz)
    outlook.surveyed([Depth(INGRESS, (0, 0, 0, 0)), Depth(tier, (0, waiting, 0, 0))], [])


def free(stage: Stage, tier: str, places: int) -> None:
    stage.dispatcher.outlook.hosts.own[tier] = replace(Service("h"), free=places)


async def routed(stage: Stage, id: str) -> Result:
    return await stage.ended(id)


async def test_a_job_stays_at_home_while_there_is_room(stage: Stage) -> None:
    """The heavier tier is idle, too, and is left alone; the record says who was asked for, and who served."""
    small = await stage.worker()
    await stage.worker(row=1, tier="heavy")
    free(stage, "fast", 4)
    free(stage, "heavy", 4)
    id = await stage.submit()
    assert await answer(small) == id
    result = await stage.ended(id)
    route = result.route
    assert route is not None and (route.requested_tier, route.queued, result.tier) == ("fast", ("fast",), "fast")
    assert [each.tier for each in route.outlook] == ["fast", "heavy"]
    assert route.placed is not None and (route.placed.worker, route.placed.reason) == ("fast-0", "the only worker")


async def test_a_busy_home_lends_its_jobs_upwards(stage: Stage) -> None:
    """Long waits at home, a free place above: whichever is free first serves it, and the record says why."""
    large = await stage.worker(tier="heavy")
    await stage.worker(row=1, slots=0)
    free(stage, "heavy", 4)
    busy(stage, "fast", waiting=30, hz=1.0)
    id = await stage.submit()
    assert await answer(large) == id
    result = await stage.ended(id)
    route = result.route
    assert route is not None and (route.requested_tier, result.tier) == ("fast", "heavy")
    assert route.queued == ("fast", "heavy") and "fast is busy for about 31.0 s: heavy would be sooner" in route.reason
    assert route.placed is not None and route.placed.tier == "heavy"


async def test_a_strict_job_waits(stage: Stage) -> None:
    """Its policy forbids another tier, however long it waits."""
    await stage.worker(tier="heavy")
    await stage.worker(row=1, slots=0)
    free(stage, "heavy", 4)
    busy(stage, "fast", waiting=30, hz=1.0)
    id = await stage.submit(b'{"user_query":"hi","tier_policy":"strict"}')
    await stage.state(id, "ready")
    small = await stage.worker(row=2 - 1)
    assert await answer(small) == id


async def test_a_home_without_workers_is_no_home(stage: Stage) -> None:
    """Its only worker is away: the job waits for the heavier tier as well."""
    large = await stage.worker(tier="heavy")
    id = await stage.submit()
    assert await answer(large) == id
    route = (await stage.ended(id)).route
    assert route is not None and "fast has no worker now" in route.reason


async def test_a_home_whose_workers_die_while_jobs_wait(stage: Stage) -> None:
    """They waited at home alone; when it has had no worker for `strand_ms` they are routed again, served elsewhere."""
    stage.queue._store.limits = Limits(strand_ms=1)
    full = await stage.worker(slots=0)
    id = await stage.submit()
    await stage.state(id, "ready")
    await full.close()
    large = await stage.worker(row=1, tier="heavy")
    services = {"fast": Service("m", workers=0), "heavy": Service("h")}
    await stage.queue.announce(Host("host:1", services), 60)
    async with asyncio.timeout(5):
        while not (await stage.queue.reap("host:1", tiers=TIERS)).rerouted:
            await asyncio.sleep(0.001)
    assert await answer(large) == id
    end = await stage.ended(id)
    assert (end.state, end.tier, end.attempt) == ("done", "heavy", 1)


async def test_lengths_are_learnt(stage: Stage) -> None:
    """By tier and muse, from what was answered."""
    small = await stage.worker()
    for _ in range(3):
        id = await stage.submit(b'{"user_query":"hi","muse_id":7}')
        [order] = await small.orders()
        await small.send(Frame.EVENTS, [Finished(order.handle, "stop", completion_tokens=40)])
        await stage.ended(id)
    assert stage.dispatcher.scheduling.lengths.expect("fast", "7", None) == 40
