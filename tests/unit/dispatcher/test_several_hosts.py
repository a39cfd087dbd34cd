"""Several dispatchers on one queue: each routes for all, and a job waits for the host that can serve it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from metamusesd.dispatcher.hosts import Hosts
from metamusesd.dispatcher.pump import Pump
from metamusesd.dispatcher.rounds import Rounds
from metamusesd.dispatcher.router import TierView
from metamusesd.queues.base import INGRESS, Claim, Host, Routed, Service, Submission, Want
from metamusesd.queues.memory import MemoryQueue
from metamusesd.wire import Finished, Frame
from tests.unit.dispatcher.stage import Fragile, PlayedWorker, Stage

FAST, HEAVY = TierView("fast", "m"), TierView("heavy", "h")


async def settled() -> None:
    """Everything that can happen now has happened."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.fixture
async def hosts() -> AsyncIterator[tuple[Stage, Stage]]:
    """Two hosts that know of each other: one serves fast, the other heavy."""
    queue = Fragile()
    here, there = Stage(queue, [FAST], "here:1"), Stage(queue, [HEAVY], "there:1")
    rounds = [
        Rounds(stage.dispatcher, queue, owner, [tier], 15_000, 10.0)
        for stage, owner, tier in ((here, "here:1", "fast"), (there, "there:1", "heavy"))
    ]
    for each in (*rounds, rounds[0]):
        survey = asyncio.create_task(each.survey())
        await each.surveyed.wait()
        await settled()
        survey.cancel()
    yield here, there
    await here.close()
    await there.close()


async def answer(worker: PlayedWorker, count: int) -> None:
    orders = await worker.orders(count)
    await worker.send(Frame.EVENTS, [Finished(order.handle, reason="stop", completion_tokens=1) for order in orders])


async def test_a_tier_of_another_host(hosts: tuple[Stage, Stage]) -> None:
    """A job that forces a tier or a model of the other host is routed by whoever claims it, and served there."""
    here, there = hosts
    there.tasks[1].cancel()  # it does not see ingress any more
    there.dispatcher.pump._wants = list
    worker = await there.worker(tier="heavy")
    by_tier = await here.submit(b'{"user_query":"hi","tier":"heavy"}')
    by_model = await here.submit(b'{"user_query":"hi","model":"h"}')
    await here.state(by_tier, "ready")
    await here.state(by_model, "ready")
    there.dispatcher.pump._wants = there.dispatcher.fleet.wants
    there.dispatcher.pump.wake()
    await answer(worker, 2)
    assert [(await here.ended(id)).state for id in (by_tier, by_model)] == ["done", "done"]


async def test_what_no_live_host_serves(hosts: tuple[Stage, Stage]) -> None:
    """A tier of nobody, and one of a host that has fallen silent, are refused as before; an own one never is."""
    here, there = hosts
    await there.close()
    id = await here.submit(b'{"user_query":"hi","tier":"code"}')
    assert (await here.ended(id)).error["code"] == "unknown_tier"  # type: ignore[index]
    await here.queue.announce(Host("there:1", {"heavy": Service("h")}), 0.001)
    async with asyncio.timeout(5):
        while len(await here.queue.hosts()) > 1:
            await asyncio.sleep(0.001)
    here.dispatcher.outlook.surveyed([], await here.queue.hosts())
    id = await here.submit(b'{"user_query":"hi","tier":"heavy"}')
    assert (await here.ended(id)).error["code"] == "unknown_tier"  # type: ignore[index]
    id = await here.submit(b'{"user_query":"hi","tier":"fast"}')
    await here.state(id, "ready")


async def test_a_host_that_has_just_come() -> None:
    """A tier that nobody served at the last survey is asked for once more, and routed to a host that has come since."""
    stage = Stage(tiers=[FAST])
    ids = [await stage.submit(b'{"user_query":"hi","tier":"heavy"}')]
    assert (await stage.ended(ids[0])).error["code"] == "unknown_tier"  # type: ignore[index]
    await stage.queue.announce(Host("there:1", {"heavy": Service("h")}), 30.0)
    ids = [await stage.submit(b'{"user_query":"hi","tier":"heavy"}') for _ in range(3)]
    for id in ids:
        await stage.state(id, "ready")
    await stage.close()


def test_a_model_that_only_some_hosts_have() -> None:
    """The views are all tiers and models of live hosts, from fast upwards; an older self is no other host."""
    hosts = Hosts("here:2", [FAST])
    hosts.update(
        [
            Host("here:1", {"math": Service("old")}),
            Host("here:2", {"fast": Service("m")}),
            Host("there:1", {"heavy": Service("h", 1, 2.0), "fast": Service("other")}),
        ]
    )
    assert hosts.views == (FAST, TierView("fast", "other"), HEAVY)
    assert hosts.shared("fast") and not hosts.shared("math") and not hosts.shared(INGRESS)
    assert hosts.served("heavy") and not hosts.served("math")
    hosts.update([Host("there:1", {"heavy": Service("h", workers=0)})])
    assert hosts.shared("heavy") and not hosts.served("heavy") and HEAVY in hosts.views
    hosts.update([Host("there:1", {"heavy": Service("h", 1, 2.0), "fast": Service("other")})])
    assert hosts.services("heavy") == [Service("h", 1, 2.0)]
    assert [service.model for service in hosts.services("fast")] == ["m", "other"]


class Played:
    """A pump whose free places the test decides."""

    def __init__(self, queue: MemoryQueue, name: str, *wants: Want) -> None:
        self.wants, self.taken = list(wants), list[Claim]()
        self.arrived = asyncio.Event()
        self.pump = Pump(
            queue, f"{name}:1", 15_000, ["fast"], lambda: list(self.wants), self._take, lambda error: None,
            shared=lambda tier: True,
        )  # fmt: skip
        self.tasks = [asyncio.create_task(self.pump.run()), asyncio.create_task(self.pump.watch())]

    def _take(self, claim: Claim) -> None:
        self.taken.append(claim)
        self.wants.clear()
        self.arrived.set()

    def free(self, *wants: Want) -> None:
        self.wants[:] = wants
        self.pump.freed("fast")

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)


async def ready(queue: MemoryQueue, id: str, priority: int = 0) -> None:
    """A job that a third host has routed."""
    await queue.submit([Submission(id, b"{}", id, priority)])
    (claim,) = await queue.claim("third:1", f"{id}-c", [Want(INGRESS, 1)], lease_ms=1000)
    await queue.claim("third:1", f"{id}-r", [], [Routed(id, claim.token, ("fast",), b"{}")], lease_ms=1000)


async def test_a_full_host_leaves_the_marker_alone() -> None:
    """A host without room does not wait for its tier's marker: the one with room gets the job at once."""
    queue = MemoryQueue()
    full, free = Played(queue, "full"), Played(queue, "free", Want("fast", 1))
    await settled()
    await ready(queue, "a")
    await asyncio.wait_for(free.arrived.wait(), 2)
    full.free(Want("fast", 1))
    await settled()
    await ready(queue, "b")
    await asyncio.wait_for(full.arrived.wait(), 2)
    assert [claim.id for claim in full.taken] == ["b"]
    await full.stop()
    await free.stop()


@pytest.mark.parametrize("left", [(), (Want("fast", 1, 2),)], ids=["full", "room for high only"])
async def test_a_marker_popped_without_room_is_armed_again(left: tuple[Want, ...]) -> None:
    """A host that became full while it waited, or has room for high classes only, passes the marker on, calmly."""
    queue = MemoryQueue()
    first = Played(queue, "first", Want("fast", 1))
    await settled()
    first.wants[:] = left  # it waits for the marker still
    await ready(queue, "a")
    await settled()
    assert first.taken == []
    second = Played(queue, "second", Want("fast", 1))
    await asyncio.wait_for(second.arrived.wait(), 2)
    calls = first.pump._calls
    await asyncio.sleep(0.2)
    assert first.pump._calls - calls < 20
    await first.stop()
    await second.stop()


async def test_a_host_that_stops_hands_its_marker_on() -> None:
    """A drained host whose wait still pops a marker arms it again before it goes."""
    queue = MemoryQueue()
    leaving = Played(queue, "leaving", Want("fast", 1))
    await settled()
    leaving.pump.stop()
    await leaving.pump.stopped.wait()
    await ready(queue, "a")
    await settled()
    staying = Played(queue, "staying", Want("fast", 1))
    staying.pump._woken.clear()
    await asyncio.wait_for(staying.arrived.wait(), 2)
    await leaving.stop()
    await staying.stop()


async def test_a_full_host_routes_on() -> None:
    """No place in any tier is no reason to leave ingress waiting."""
    queue = MemoryQueue()
    full = Played(queue, "full")
    await queue.submit([Submission("a", b"{}", "a", 1)])
    await asyncio.wait_for(full.arrived.wait(), 2)
    assert full.taken[0].queue == INGRESS
    await full.stop()


async def test_who_still_waits_is_remembered() -> None:
    """A claim that filled every place for low jobs leaves some waiting, whatever is free for higher classes."""
    queue = MemoryQueue()
    await ready(queue, "a")
    await ready(queue, "b")
    heard = asyncio.Queue[set[str]]()
    wants = [Want("fast", 1), Want("fast", 3, 1)]
    pump = Pump(
        queue, "one:1", 15_000, ["fast"], lambda: wants, lambda claim: None, lambda error: None,
        lambda routed, claims, waiting: heard.put_nowait(set(waiting)),
    )  # fmt: skip
    task = asyncio.create_task(pump.run())
    assert await asyncio.wait_for(heard.get(), 2) == {"fast"}
    wants[:] = [Want("fast", 2)]
    pump.wake()
    assert await asyncio.wait_for(heard.get(), 2) == set()
    task.cancel()
    await asyncio.wait([task])
