"""Two and three hosts on one Redis: jobs go where their tier lives, and a host that is lost takes none along."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from metamusesd.job import Result
from tests.process.daemon_rig import ended, follow, judge, running, submit_many
from tests.process.hosts_rig import Hosts, can_make_namespaces

pytestmark = [
    pytest.mark.slow_fault,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root: makes network namespaces"),
]

TEXT = " ".join(["one two three"] * 20)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    made = Hosts(strand_s=2.0)
    yield made
    made.close()


async def test_a_job_is_served_where_its_tier_lives(hosts: Hosts) -> None:
    """Any host routes; a job for `heavy` is generated on the host that serves it, and `fast` on the other."""
    fast, heavy = hosts.add("a", "fast"), hosts.add("b", "heavy")
    async with hosts.client() as client:
        query = {"user_query": "one two three !tokens=6"}
        tiers = ["fast", "heavy"] * 10
        receipts = [await client.submit(query | {"tier": tier}) for tier in tiers]
        results = await ended(client, [receipt.id for receipt in receipts])
    assert [(result.state, result.tier) for result in results] == [("done", tier) for tier in tiers]
    assert [daemon.status()["workers"][0]["jobs"] for daemon in (fast, heavy)] == [10, 10]


async def test_a_killed_host_loses_nothing(hosts: Hosts) -> None:
    """One of three hosts dies with everything on it: when its leases have run out, the others finish its jobs."""
    for name in "abc":
        hosts.add(name, "fast")
    async with hosts.client() as client:
        ids = await submit_many(client, 30, "one two three !tokens=60 !delay=20ms")
        follows = [asyncio.create_task(follow(client, id)) for id in ids]
        await running(client, ids, 20)
        hosts.kill("b")
        results = await ended(client, ids)
        texts = [text for text, _ in await asyncio.gather(*follows)]
    await judge(hosts.daemons["a"], results, TEXT)
    assert texts == [TEXT] * 30


async def test_a_host_cut_off_loses_nothing_and_writes_nothing_late(hosts: Hosts) -> None:
    """The cable of a host is pulled for longer than its leases: the other finishes, and what it says later is void."""
    hosts.add("a", "fast"), hosts.add("b", "fast")
    async with hosts.client() as client:
        ids = await submit_many(client, 16, "one two three !tokens=60 !delay=100ms")
        follows = [asyncio.create_task(follow(client, id)) for id in ids]
        await running(client, ids, 16)
        hosts.network.plug("b", "down")
        restarted = [asyncio.create_task(_restarted(client, id)) for id in ids]
        await asyncio.wait(restarted, return_when=asyncio.FIRST_COMPLETED, timeout=30)
        hosts.network.plug("b", "up")
        results = await ended(client, ids)
        texts = [text for text, _ in await asyncio.gather(*follows)]
        for task in restarted:
            task.cancel()
    await judge(hosts.daemons["a"], results, TEXT)
    assert texts == [TEXT] * 16
    hosts.daemons["b"].until(lambda status: status["dispatcher"]["redis_ok"] and not status["dispatcher"]["running"])


async def _restarted(client: object, id: str) -> None:
    async for event in client.stream(id):  # type: ignore[attr-defined]
        if event.kind == "restarted":
            return


async def test_a_job_without_a_host_is_not_stranded(hosts: Hosts) -> None:
    """The only host of a tier is gone: a job that may use another tier is routed again, one that may not says so."""
    hosts.add("a", "fast"), hosts.add("b", "heavy")
    async with hosts.client() as client:
        free = {"user_query": "Analyze and compare the philosophical implications of x !tokens=4", "id": "free"}
        hold = [await client.submit({"user_query": "x !tokens=2000 !delay=50ms", "tier": "heavy"}) for _ in range(12)]
        await running(client, [receipt.id for receipt in hold], 8)
        await client.submit(free)
        forced = await client.submit({"user_query": "x !tokens=4", "tier": "heavy"})
        await _ready(client, ["free", forced.id])
        hosts.kill("b")
        moved, failed = await asyncio.gather(client.wait("free", 60), client.wait(forced.id, 60))
    assert (moved.state, moved.tier) == ("done", "fast")
    assert (failed.state, _code(failed)) == ("failed", "unknown_tier")


async def _ready(client: object, ids: list[str]) -> None:
    async with asyncio.timeout(20):
        while [(await client.status(id)).state for id in ids] != ["ready"] * len(ids):  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)


def _code(result: Result) -> str:
    return str((result.error or {}).get("code"))
