"""The supervisor's rules with the whole daemon: poison storms, recycling under load, an operator's kills."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.process.daemon_rig import CONFIG, Daemon, ended, judge, running, submit_many

TEXT = " ".join(["one two three"] * 20)


class Strict(Daemon):
    """With the smallest restart budget, or other lines of configuration instead."""

    changes: tuple[tuple[str, str], ...] = (("restart_limit = 20", "restart_limit = 1"),)

    def text(self) -> str:
        text = CONFIG.format(folder=self.folder, drain_s=self.drain_s)
        for old, new in self.changes:
            assert old in text
            text = text.replace(old, new)
        return text


class Small(Strict):
    """A worker may not grow past 100 MiB; no death at all is allowed."""

    changes = (("restart_limit = 20", "restart_limit = 0"), ("cores = 1", "cores = 1\nrecycle_mb = 100"))


@pytest.fixture
def start() -> Iterator[Callable[[type[Daemon]], Daemon]]:
    made: list[Daemon] = []

    def make(kind: type[Daemon]) -> Daemon:
        made.append(kind())
        return made[-1]

    yield make
    for daemon in made:
        daemon.close()


@pytest.mark.timeout(300)
@pytest.mark.slow_fault
async def test_fifty_equal_poison_jobs_end_dead_and_the_daemon_lives(start) -> None:
    """Three deaths each, with a budget of one: all are dead, the jobs beside them are done, no worker is given up."""
    daemon = start(Strict)
    async with daemon.client() as client:
        poison = [(await client.submit({"user_query": "a b !crash=step2", "id": f"p{n}"})).id for n in range(50)]
        ids = await submit_many(client, 10, "one two three !tokens=60 !delay=1ms")
        dead = await asyncio.gather(*(client.wait(id, 240) for id in poison))
        results = await ended(client, ids)
    assert {result.state for result in dead} == {"dead"}
    await judge(daemon, results, TEXT)
    daemon.until(lambda status: all(worker["status"] == "ready" for worker in status["workers"]))


async def test_recycling_under_load_loses_nothing(start) -> None:
    """Both workers grow too large: drained one after the other, every job is done at its first attempt."""
    daemon = start(Small)
    before = set(daemon.worker_pids())
    async with daemon.client() as client:
        leaks = [(await client.submit({"user_query": "x !leak=150MB !tokens=100 !delay=20ms"})).id for _ in range(8)]
        ids = await submit_many(client, 20)
        results = await ended(client, ids)
        leaked = await ended(client, leaks)
    await judge(daemon, results, TEXT)
    assert {result.state for result in leaked} == {"done"}
    assert {result.attempt for result in [*results, *leaked]} == {1}
    daemon.until(
        lambda status: (
            {worker["pid"] for worker in status["workers"]}.isdisjoint(before)
            and all(worker["status"] == "ready" for worker in status["workers"])
        )
    )


async def test_an_operators_kills_spend_nobodys_budget(start) -> None:
    """kill -9 of a worker, six times under the same job: it is not dead but done, and the worker is still there."""
    daemon = start(Strict)
    async with daemon.client() as client:
        id = (await client.submit({"user_query": "one two three !tokens=60 !delay=20ms", "id": "j0"})).id
        for _ in range(6):
            await running(client, [id], 1)
            busy = await asyncio.to_thread(daemon.until, lambda status: _at_work(status) > 0)
            pid = _at_work(busy)
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(daemon.until, lambda status, pid=pid: _all_are_back(status, pid))
        results = await ended(client, [id])
    await judge(daemon, results, TEXT)


def _at_work(status: dict[str, Any]) -> int:
    """The pid of a worker that holds a job, or 0."""
    return next((worker["pid"] for worker in status["workers"] if worker["slots_used"] and worker["pid"]), 0)


def _all_are_back(status: dict[str, Any], killed: int) -> bool:
    return all(worker["status"] == "ready" and worker["pid"] != killed for worker in status["workers"])
