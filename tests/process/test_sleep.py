"""A tier that nobody uses is unloaded, and comes back when a job waits for it; nothing is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.process.daemon_rig import CONFIG, Daemon, ended


class Sleepy(Daemon):
    """`fast` may sleep, before anybody has looked, even; `heavy` is pinned."""

    awake = ("ready", "asleep")

    def text(self) -> str:
        text = CONFIG.format(folder=self.folder, drain_s=self.drain_s)
        text = text.replace("enabled = false", "enabled = true\nsemantic = false")
        text = text.replace("cores = 1\n", "idle_unload_s = 0.3\n")
        return text + '[tiers.heavy]\nmodel = "echo"\nworkers = 1\n'


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Sleepy()
    yield made
    made.close()


def asleep(daemon: Daemon) -> None:
    daemon.until(lambda status: [w["status"] for w in status["workers"]] == ["asleep", "asleep", "ready"])


async def test_it_sleeps_and_comes_back(daemon: Daemon) -> None:
    """Its processes are gone, the daemon is ready all the same; many jobs at once are done at their first attempt."""
    asleep(daemon)
    assert daemon.status()["state"] == "ready"
    assert [worker["pid"] or 0 for worker in daemon.status()["workers"]][:2] == [0, 0]
    async with daemon.client() as client:
        ids = [(await client.submit({"user_query": f"job {n}", "tier": "fast"})).id for n in range(20)]
        results = await ended(client, ids)
    assert {(result.state, result.tier, result.attempt) for result in results} == {("done", "fast", 1)}
    asleep(daemon)


async def test_a_pinned_tier_helps_out(daemon: Daemon) -> None:
    """A job that may go to another tier is not kept waiting for the load."""
    asleep(daemon)
    async with daemon.client() as client:
        result = await client.execute({"user_query": "hi"}, 10)
    assert result.state == "done" and result.tier in ("fast", "heavy")


async def test_a_known_answer_wakes_nobody(daemon: Daemon) -> None:
    """The cache answers for a model that sleeps."""
    ask = {"user_query": "known", "tier": "fast"}
    async with daemon.client() as client:
        assert not (await client.execute(ask, 10)).from_cache
        asleep(daemon)
        assert (await client.execute(ask, 10)).from_cache
    assert daemon.status()["workers"][0]["status"] == "asleep"


async def test_a_new_dispatcher_knows_who_sleeps(daemon: Daemon) -> None:
    """Also a job that came while there was none wakes the tier."""
    asleep(daemon)
    daemon.signal("dispatcher")
    async with daemon.client() as client:
        id = (await client.submit({"user_query": "x", "tier": "fast", "cache": {"read": False}})).id
        assert (await client.wait(id, 20)).state == "done"


async def test_jobs_and_sleep_take_turns(daemon: Daemon) -> None:
    """Jobs that come just when it falls asleep are done: no wake-up is lost."""
    async with daemon.client() as client:
        for n in range(6):
            ask = {"user_query": f"turn {n}", "tier": "fast", "cache": {"read": False, "write": False}}
            assert (await client.execute(ask, 20)).state == "done"
            daemon.until(lambda status: "goes to sleep" in daemon.tail() and bool(status))
            await asyncio.sleep(0.3 + 0.05 * n)  # on both sides of the moment


async def test_sigterm_with_a_sleeping_tier(daemon: Daemon) -> None:
    """The daemon ends in order."""
    asleep(daemon)
    assert daemon.stop() == 0
