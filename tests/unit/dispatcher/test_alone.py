"""Jobs under which workers died: they run alone, in turn, and what was really alone is what counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from metamusesd.dispatcher import alone
from metamusesd.metrics import MetricsPage
from metamusesd.queues.base import Fault, Requeue, Verdict
from metamusesd.wire import Finished, Frame, Refused
from tests.unit.dispatcher.stage import PlayedWorker, Stage


@pytest.fixture(autouse=True)
def breathless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next turn comes at once."""
    monkeypatch.setattr(alone, "BREATH_S", 0.0)


async def crash_twice(stage: Stage, count: int, **more: Any) -> list[str]:
    """So many jobs under which two workers died together: from now on each runs alone."""
    ids = [await stage.submit(**more) for _ in range(count)]
    for _ in range(2):
        worker = await stage.worker(slots=count)
        assert sorted(order.id for order in await worker.orders(count)) == sorted(ids)
        await stage.die(worker)
    return ids


async def settled(stage: Stage, worker: PlayedWorker, handle: int, id: str) -> None:
    await worker.send(Frame.EVENTS, [Finished(handle, "stop")])
    assert (await stage.ended(id)).state == "done"


async def test_it_waits_for_an_emptied_worker(stage: Stage) -> None:
    """Nothing new goes to the worker that is being emptied; when its last job ends, the one job goes in."""
    [poison] = await crash_twice(stage, 1)
    busy = await stage.submit(priority=3)
    await stage.state(busy, "ready")
    worker = await stage.worker()
    [order] = await worker.orders()
    assert order.id == busy
    assert stage.dispatcher.fleet.wants() == []
    await settled(stage, worker, order.handle, busy)
    [order] = await worker.orders()
    assert (order.id, order.attempt) == (poison, 3)


async def test_one_worker_of_a_tier_is_kept_at_a_time(stage: Stage) -> None:
    """Three such jobs and two workers: one of them serves everybody, the other the three, one after the other."""
    ids = await crash_twice(stage, 3)
    workers = [await stage.worker(row=row) for row in range(2)]
    served = []
    for _ in range(3):
        async with asyncio.timeout(5):
            while len(busy := [link for link in stage.dispatcher.fleet.ready["fast"] if link.load.closed]) != 1:
                await asyncio.sleep(0)
        [order] = await workers[busy[0].row].orders()
        other = await stage.submit()
        [beside] = await workers[1 - busy[0].row].orders()
        assert beside.id == other
        await settled(stage, workers[1 - busy[0].row], beside.handle, other)
        await settled(stage, workers[busy[0].row], order.handle, order.id)
        served.append(order.id)
    assert served == ids


async def test_a_cancel_while_it_waits(stage: Stage) -> None:
    """Cancelled while its worker is being emptied: it is held no more, and the worker takes others again."""
    [poison] = await crash_twice(stage, 1)
    worker = await stage.worker(slots=1)
    [order] = await worker.orders()
    assert order.id == poison
    await stage.queue.cancel(poison)
    stage.dispatcher.ask(0)
    assert await worker.cancels() == [order.handle]
    other = await stage.submit()
    [order] = await worker.orders()
    assert order.id == other


async def test_a_cancel_while_others_have_the_turn(stage: Stage) -> None:
    """Two wait, the second is cancelled: it is gone at once, though nothing was ever sent."""
    first, second = await crash_twice(stage, 2)
    worker = await stage.worker()
    [order] = await worker.orders()
    assert order.id == first
    await stage.queue.cancel(second)
    stage.dispatcher.ask(0)
    async with asyncio.timeout(5):
        while len(stage.dispatcher.held) > 1:
            await asyncio.sleep(0)
    await settled(stage, worker, order.handle, first)


async def test_a_deadline_passes_while_it_waits(stage: Stage) -> None:
    """Its deadline is over before its turn comes: expired, and never sent."""
    first, late = await crash_twice(stage, 2, deadline_ms=400)
    worker = await stage.worker()
    [order] = await worker.orders()
    assert order.id == first
    async with asyncio.timeout(5):
        while (view := await stage.queue.view(late)) is None or view.state != "expired":
            stage.dispatcher.ask(0)
            await asyncio.sleep(0.01)


async def test_a_drain_while_it_waits(stage: Stage) -> None:
    """Given back at once, unburnt, though its turn never came."""
    first, second = await crash_twice(stage, 2)
    worker = await stage.worker()
    assert [order.id for order in await worker.orders()] == [first]
    await stage.dispatcher.drain(0.0)
    for id in (first, second):
        view = await stage.queue.view(id)
        assert view is not None
        assert (view.state, view.attempt, view.crashes, view.reason) == ("ready", 3, 2, "drain")


async def test_its_worker_dies_while_it_waits(stage: Stage) -> None:
    """The worker that was being emptied dies under its others: the one that waited pays nothing and takes the next."""
    [poison] = await crash_twice(stage, 1)
    busy = await stage.submit(priority=3)
    await stage.state(busy, "ready")
    worker = await stage.worker(slots=2)
    assert [order.id for order in await worker.orders()] == [busy]
    await stage.die(worker)
    worker = await stage.worker(slots=2)
    [order] = await worker.orders()
    view = await stage.queue.view(poison)
    assert view is not None
    assert (order.id, order.attempt, view.crashes) == (poison, 3, 2)
    await stage.die(worker)
    assert (await stage.ended(poison)).state == "dead"


async def test_what_is_too_much_goes_back(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many wait here; the others go back, unburnt, for a while."""
    monkeypatch.setattr(alone, "MOST_WAITING", 1)
    ids = await crash_twice(stage, 3)
    worker = await stage.worker()
    assert [order.id for order in await worker.orders()] == ids[:1]
    await stage.state(ids[2], "delayed")
    view = await stage.queue.view(ids[2])
    assert view is not None
    assert (view.attempt, view.crashes, view.reason) == (3, 2, "alone")


@pytest.mark.parametrize("together", [False, True])
async def test_what_alone_means(stage: Stage, together: bool) -> None:
    """Only who was by itself in its worker from the first to the last moment has crashed it alone."""
    worker = await stage.worker()
    id = await stage.submit()
    await worker.orders()
    if together:
        await stage.submit()
        [second] = await worker.orders()
        await worker.send(Frame.EVENTS, [Finished(second.handle, "stop")])
    outcomes = spy(stage)
    await stage.die(worker, evidence={"worker": "fast-0", "how": "signal 11"})
    await stage.state(id, "ready")
    [back] = outcomes
    assert back.fault is (Fault.CRASH if together else Fault.CRASH_ALONE)
    assert json.loads(back.evidence)["how"] == "signal 11"


async def test_a_cancelled_neighbour_is_still_one(stage: Stage) -> None:
    """A job that was cancelled may still be what crashes the worker, until the worker has said that it is gone."""
    worker = await stage.worker()
    gone = await stage.submit()
    [first] = await worker.orders()
    await stage.queue.cancel(gone)
    stage.dispatcher.ask(0)
    assert await worker.cancels() == [first.handle]
    id = await stage.submit()
    await worker.orders()
    outcomes = spy(stage)
    await stage.die(worker)
    await stage.state(id, "ready")
    [back] = outcomes
    assert back.fault is Fault.CRASH
    assert json.loads(back.evidence)["neighbours"] == 1


async def test_who_never_came_in_pays_nothing(stage: Stage) -> None:
    """The worker died before it looked at the second order: that job was not in it, and is not to blame."""
    worker = await stage.worker()
    inside = await stage.submit()
    await worker.orders()
    outside = await stage.submit()
    await worker.orders()
    stage.board.workers[0].write(epoch=worker.epoch, frames_received=1)
    outcomes = spy(stage)
    await stage.die(worker)
    await stage.state(inside, "ready")
    assert {back.id: back.fault for back in outcomes} == {inside: Fault.CRASH, outside: Fault.NONE}


async def test_who_makes_a_worker_exit_is_to_blame(stage: Stage) -> None:
    """Exit code 0 with a job still in it is a death like any other; a worker that was asked to leave refuses it."""
    worker = await stage.worker()
    id = await stage.submit()
    await worker.orders()
    await stage.die(worker, exit=0)
    worker = await stage.worker()
    [order] = await worker.orders()
    await worker.send(Frame.EVENTS, [Refused(order.handle, "leaving")])
    await stage.die(worker, exit=0)
    worker = await stage.worker()
    [again] = await worker.orders()
    view = await stage.queue.view(id)
    assert view is not None
    assert (view.crashes, again.attempt, view.reason) == (1, 2, "leaving")


async def test_crashes_are_counted(stage: Stage) -> None:
    """By what they cost: with others, alone, killed from outside; a retry by its own name."""
    page = MetricsPage(stage.board.metric_words)
    await crash_twice(stage, 2)
    worker = await stage.worker()
    await worker.orders()
    await stage.die(worker)
    worker = await stage.worker()
    [order] = await worker.orders()
    await worker.send(Frame.EVENTS, [Finished(order.handle, error={"code": "engine_failed", "retryable": True})])
    await worker.orders()
    await stage.die(worker, killed=True)
    worker = await stage.worker()
    await worker.orders()
    counts = [page.value("crashes_total", kind) for kind in ("crash", "crash_alone", "killed")]
    assert counts == [4, 1, 1]
    reasons = ("worker_died", "worker_killed", "retry")
    assert [page.value("request_restarts_total", reason) for reason in reasons] == [5, 1, 1]


async def test_who_is_killed_from_outside_is_innocent(stage: Stage) -> None:
    """An operator's SIGKILL costs an attempt and no crash."""
    worker = await stage.worker()
    id = await stage.submit()
    await worker.orders()
    await stage.die(worker, killed=True)
    other = await stage.worker(row=1)
    [again] = await other.orders()
    view = await stage.queue.view(id)
    assert view is not None
    assert (again.attempt, view.crashes, view.reason) == (2, 0, "worker_killed")


def spy(stage: Stage) -> list[Requeue]:
    """What is given back from now on."""
    seen: list[Requeue] = []
    requeue = stage.queue.requeue

    async def requeued(backs: Sequence[Requeue]) -> list[Verdict]:
        seen.extend(backs)
        return await requeue(backs)

    stage.queue.requeue = requeued  # type: ignore[method-assign]
    return seen
