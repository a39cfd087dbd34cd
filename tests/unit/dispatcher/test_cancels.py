"""A cancel wakes the dispatcher that runs the job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from metamusesd.dispatcher.rounds import Rounds
from metamusesd.errors import QueueUnavailable
from metamusesd.queues.base import cancels
from metamusesd.wire import Frame, Token
from tests.unit.dispatcher.stage import Fragile, Stage

OWNER = "host:1"


class Deaf(Fragile):
    """Its first wait for cancels fails."""

    waits = 0

    async def wait(self, queues: object, timeout_s: float) -> bool:
        if queues == [cancels(OWNER)]:
            self.waits += 1
            if self.waits == 1:
                raise QueueUnavailable
        return await super().wait(queues, timeout_s)  # type: ignore[arg-type]


@pytest.fixture
async def listening() -> AsyncIterator[Stage]:
    """A stage without beats: nobody asks about silent runs."""
    stage = Stage(Deaf(), owner=OWNER)
    rounds = Rounds(stage.dispatcher, stage.queue, OWNER, ["fast"], 15_000, 10.0)
    stage.tasks.append(asyncio.get_running_loop().create_task(rounds.cancels()))
    yield stage
    await stage.close()


async def test_a_cancel_reaches_the_worker_at_once(listening: Stage) -> None:
    """The worker hears of the cancel of a silent job without any beat, also after Redis was away; its neighbours go
    on."""
    worker = await listening.worker()
    ids = [await listening.submit() for _ in range(3)]
    orders = {order.id: order.handle for order in await worker.orders(3)}
    assert await listening.queue.cancel(ids[1]) == "cancelled"
    assert await worker.cancels() == [orders[ids[1]]]
    await worker.send(Frame.EVENTS, [Token(orders[ids[0]], "still here", 1, True)])
    assert await listening.queue.cancel(ids[0]) == "cancelled"
    assert await worker.cancels() == [orders[ids[0]]]
    assert {run.claim.id for run in listening.dispatcher.held} == {ids[2]}
