"""The server's clock was put back by hours, or a replica whose clock is behind took over: nothing waits for so long."""

from __future__ import annotations

import asyncio

from metamusesd.queues.base import ClassLimits, Fault, Host, Limits, Requeue, Service, Suspect
from tests.contract.bench import LEASE_MS, OK, OWNER, Bench, ids
from tests.contract.test_queue_aging import AGING, HOUR_MS, backdate, flood

DAY_MS = 24 * HOUR_MS


async def later(bench: Bench, key: str, id: str, by_ms: int) -> None:
    """What a clock that is put back by so much leaves behind."""
    assert bench.door
    await bench.door.ask("ZINCRBY", f"{bench.door.prefix}:{key}", by_ms, id)


async def test_leases_of_the_future(bench: Bench) -> None:
    """A lease that ends later than any can is doubted and reaped; whoever renews it in between keeps it."""
    if bench.door is None:
        return
    gone, alive = await bench.run("gone"), await bench.run("alive")
    for job in (gone, alive):
        await later(bench, "leases", job.id, 2 * HOUR_MS)
    suspects = (await bench.queue.reap("host-b:1")).suspects
    assert sorted(suspect.id for suspect in suspects) == ["alive", "gone"]
    assert await bench.queue.renew([("alive", alive.token)], lease_ms=LEASE_MS) == [OK]
    assert (await bench.queue.reap("host-b:1", suspects)).requeued == ("gone",)


async def test_delays_of_the_future(bench: Bench) -> None:
    """A delayed job that is due later than any can be wakes; a delay is a day at most."""
    if bench.door is None:
        return
    for id in ("a", "b"):
        job = await bench.run(id)
        await bench.queue.requeue([Requeue(id, job.token, "engine_failed", Fault.ERROR, delay_ms=40 * DAY_MS)])
    assert (await bench.queue.reap(OWNER)).woken == ()
    await later(bench, "delayed", "a", HOUR_MS)
    assert (await bench.queue.reap(OWNER)).woken == ("a",)


async def test_hosts_of_the_future(bench: Bench) -> None:
    """A host that would live for hours is none; whoever lives says so again. Its tiers strand in time."""
    if bench.door is None:
        return
    bench.queue = await bench.again(Limits(strand_ms=1))
    await bench.queue.announce(Host("host-b:1", {"fast": Service("m", 1, 1.0)}), 5)
    await later(bench, "hosts", "host-b:1", 2 * HOUR_MS)
    job = await bench.run("a")
    await bench.queue.requeue([Requeue("a", job.token, "drain")])
    await bench.queue.reap(OWNER, tiers=["fast"])
    assert await bench.queue.hosts() == []
    (now_s, _) = await bench.door.ask("TIME")
    await bench.door.ask("HSET", f"{bench.door.prefix}:unserved", "fast", (int(now_s) + 7200) * 1000)
    await bench.queue.reap(OWNER, tiers=["fast"])
    rerouted: tuple[str, ...] = ()
    while not rerouted:
        await asyncio.sleep(0.002)
        rerouted = (await bench.queue.reap(OWNER, tiers=["fast"])).rerouted
    assert rerouted == ("a",)


async def test_jobs_of_the_future_are_aged(bench: Bench) -> None:
    """A job that was submitted before the clock was put back takes the turn of the aged: it has waited longest."""
    bench.queue = await bench.again(AGING)
    await bench.submit("old", "future", priority=0)
    await bench.submit("normal", priority=1)
    await backdate(bench.queue, "old", -3 * HOUR_MS)
    await backdate(bench.queue, "normal", 5 * HOUR_MS)
    await flood(bench, 0)
    assert [claim.id for claim in await bench.claim(count=16) if claim.aged] == ["old", "normal"]


async def test_a_step_back_kills_nobody(bench: Bench) -> None:
    """A job of the future is neither timed out nor reaped for it."""
    bench.queue = await bench.again(Limits(classes=(ClassLimits(timeout_ms=HOUR_MS),) * 4))
    await bench.submit("a")
    await backdate(bench.queue, "a", -3 * HOUR_MS)
    reaped = await bench.queue.reap(OWNER)
    assert reaped.timed_out == () and not any(isinstance(each, Suspect) for each in reaped.suspects)
    assert ids(await bench.claim()) == ["a"]
