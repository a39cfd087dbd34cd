"""A worker that is to be replaced gets nothing more and finishes what it has."""

from __future__ import annotations

import asyncio

from metamusesd.wire import Finished, Frame
from tests.unit.dispatcher.stage import Stage


async def test_a_retired_worker_finishes_what_it_has(stage: Stage) -> None:
    """New jobs go elsewhere; `retire` returns when its last one has ended; leaving then blames nobody."""
    worker = await stage.worker()
    id = await stage.submit()
    [order] = await worker.orders()
    retiring = asyncio.get_running_loop().create_task(stage.dispatcher.retire(0, worker.epoch, 5.0))
    await asyncio.sleep(0)
    assert stage.dispatcher.fleet.wants() == []
    other = await stage.worker(row=1)
    second = await stage.submit()
    assert [order.id for order in await other.orders()] == [second]
    assert not retiring.done()
    await worker.send(Frame.EVENTS, [Finished(order.handle, "stop")])
    await asyncio.wait_for(retiring, 5)
    assert (await stage.ended(id)).state == "done"
    await stage.die(worker, exit=0)
    assert len(stage.dispatcher.held) == 1


async def test_what_takes_too_long_is_given_back(stage: Stage) -> None:
    """After the drain's time the rest runs elsewhere, unburnt."""
    worker = await stage.worker()
    id = await stage.submit()
    [order] = await worker.orders()
    other = await stage.worker(row=1)
    await stage.dispatcher.retire(0, worker.epoch, 0.0)
    assert await worker.cancels() == [order.handle]
    [again] = await other.orders()
    assert (again.id, again.attempt) == (id, 1)


async def test_who_is_gone_is_retired(stage: Stage) -> None:
    """A worker that has died meanwhile, or an older epoch of it, holds nothing: the answer comes at once."""
    worker = await stage.worker()
    async with asyncio.timeout(5):
        while not stage.dispatcher.fleet.size:
            await asyncio.sleep(0)
    await stage.dispatcher.retire(0, worker.epoch - 1, 60.0)
    assert stage.dispatcher.fleet.size == 1
    await stage.dispatcher.retire(5, worker.epoch, 60.0)


async def test_a_kept_worker_retires(stage: Stage) -> None:
    """A job that must run alone waits for it to empty; it is retired: the job takes another worker."""
    poison = await stage.submit()
    for _ in range(2):
        worker = await stage.worker(slots=1)
        assert [order.id for order in await worker.orders()] == [poison]
        await stage.die(worker)
    busy = await stage.submit(priority=3)
    await stage.state(busy, "ready")
    worker = await stage.worker(slots=2)
    assert [order.id for order in await worker.orders()] == [busy]
    retiring = asyncio.get_running_loop().create_task(stage.dispatcher.retire(0, worker.epoch, 60.0))
    other = await stage.worker(row=1)
    assert [order.id for order in await other.orders()] == [poison]
    retiring.cancel()
