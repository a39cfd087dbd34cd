"""Kill every kind of process under twenty running jobs: each job has exactly one result, and no stream a gap."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.process.daemon_rig import Daemon, ended, follow, judge, running, submit_many

TEXT = " ".join(["one two three"] * 20)
JOBS = 20


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    yield made
    made.close()


async def test_a_killed_worker_takes_no_job_along(daemon: Daemon) -> None:
    """kill -9 of a worker: its jobs finish elsewhere as attempt 2, the other worker's jobs do not notice."""
    async with daemon.client() as client:
        ids = await submit_many(client, JOBS)
        follows = [asyncio.create_task(follow(client, id)) for id in ids]
        await running(client, ids, 16)
        await asyncio.to_thread(daemon.until, lambda status: status["workers"][0]["slots_used"])
        daemon.signal("fast-0")
        results = await ended(client, ids)
        texts = [text for text, _ in await asyncio.gather(*follows)]
    await judge(daemon, results, TEXT)
    assert texts == [TEXT] * JOBS
    assert {result.attempt for result in results} == {1, 2}


async def test_a_killed_dispatcher_reloads_no_model(daemon: Daemon) -> None:
    """kill -9 of the dispatcher: the same workers go on, and no job is blamed."""
    workers = daemon.worker_pids()
    async with daemon.client() as client:
        ids = await submit_many(client, JOBS)
        follows = [asyncio.create_task(follow(client, id)) for id in ids]
        await running(client, ids, 16)
        daemon.signal("dispatcher")
        results = await ended(client, ids)
        texts = [text for text, _ in await asyncio.gather(*follows)]
    await judge(daemon, results, TEXT)
    assert texts == [TEXT] * JOBS
    assert daemon.worker_pids() == workers
    assert {result.attempt for result in results} == {1}


async def test_a_killed_redis_loses_nothing(daemon: Daemon) -> None:
    """kill -9 of Redis with `appendfsync always`: every accepted job is done, and no other process was replaced."""
    before = (daemon.worker_pids(), daemon.pid("dispatcher"))
    async with daemon.client() as client:
        ids = await submit_many(client, JOBS)
        await running(client, ids, 16)
        daemon.signal("redis")
        results = await ended(client, ids)
    await judge(daemon, results, TEXT)
    assert (daemon.worker_pids(), daemon.pid("dispatcher")) == before


async def test_a_killed_supervisor_loses_nothing(daemon: Daemon) -> None:
    """kill -9 of the supervisor: its children die with it, and the daemon that is started next finishes every job."""
    async with daemon.client() as client:
        ids = await submit_many(client, JOBS)
        await running(client, ids, 16)
        daemon.signal("supervisor")
        daemon.died()
        daemon.start()
        results = await ended(client, ids)
    await judge(daemon, results, TEXT)


@pytest.mark.parametrize("name", ["fast-0", "dispatcher"])
async def test_a_stopped_process_is_replaced(daemon: Daemon, name: str) -> None:
    """SIGSTOP: it makes no progress although it owes some, so it is replaced and its jobs run again."""
    stopped = daemon.pid(name)
    async with daemon.client() as client:
        ids = await submit_many(client, JOBS)
        await running(client, ids, 16)
        daemon.signal(name, signal.SIGSTOP)
        results = await ended(client, ids)
    await judge(daemon, results, TEXT)
    assert daemon.pid(name) != stopped


@pytest.mark.parametrize("fault", ["!crash=step3", "!segv=step3", "!exit=3", "!prepare-crash", "!hang=step2"])
async def test_poison_ends_dead_and_alone(daemon: Daemon, fault: str) -> None:
    """A job that kills its workers is dead after the third, and the jobs beside it are done."""
    async with daemon.client() as client:
        ids = await submit_many(client, 4, "one two three !tokens=60 !delay=10ms")
        poison = (await client.submit({"user_query": f"a b c d {fault}", "id": "poison"})).id
        results = await ended(client, ids)
        dead = await client.wait(poison, 30)
    assert dead.state == "dead"
    await judge(daemon, results, TEXT)


@pytest.mark.slow_fault
@pytest.mark.timeout(240)
async def test_what_computes_for_ever_ends_dead(daemon: Daemon) -> None:
    """A job that keeps its worker computing is found later than its lease lasts, and blamed all the same."""
    async with daemon.client() as client:
        poison = (await client.submit({"user_query": "a b c d !spin=step1", "id": "poison"})).id
        dead = await client.wait(poison, 200)
        view = await client.status(poison)
    assert (dead.state, view.crashes) == ("dead", 3)


@pytest.mark.parametrize(
    ("phase", "query"),
    [
        ("decode", "x !tokens=50000 !delay=1ms"),
        ("prefill", "x !prefill=60s"),
        ("preparing", "x !prepare=300ms !tokens=50000 !delay=1ms"),
    ],
)
async def test_a_cancel_stops_the_work(daemon: Daemon, phase: str, query: str) -> None:
    """Cancelled while running, in any phase: the job says so, and soon nothing is computed for it any more."""
    async with daemon.client() as client:
        id = (await client.submit({"user_query": query})).id
        await running(client, [id], 1)
        assert await client.cancel(id) == "cancelled"
        assert (await client.wait(id, 10)).state == "cancelled"
    daemon.until(lambda status: not any(worker["slots_used"] for worker in status["workers"]))


async def test_a_cancel_in_the_queue(daemon: Daemon) -> None:
    """A job that waits for a place is cancelled where it stands."""
    async with daemon.client() as client:
        ids = await submit_many(client, 16, "x !tokens=100 !delay=10ms")
        await running(client, ids, 16)
        id = (await client.submit({"user_query": "waits"})).id
        assert await client.cancel(id) == "cancelled"
        assert (await client.wait(id, 10)).state == "cancelled"
        assert all(result.state == "done" for result in await ended(client, ids))


@pytest.mark.parametrize("query", ["x !tokens=50000 !delay=1ms", "x !prefill=60s"])
async def test_a_deadline_ends_a_running_job(daemon: Daemon, query: str) -> None:
    """Past its deadline a job is `expired`, and its place is free."""
    async with daemon.client() as client:
        id = (await client.submit({"user_query": query, "deadline_ms": 300})).id
        assert (await client.wait(id, 10)).state == "expired"
    daemon.until(lambda status: not any(worker["slots_used"] for worker in status["workers"]))


async def test_a_drain_finishes_what_it_can(daemon: Daemon) -> None:
    """SIGTERM: the running jobs are finished, the daemon leaves with 0, and what waited is done by the next one."""
    async with daemon.client() as client:
        ids = await submit_many(client, JOBS)
        await running(client, ids, 16)
        assert await asyncio.to_thread(daemon.stop) == 0
        await asyncio.to_thread(daemon.start)
        results = await ended(client, ids)
    await judge(daemon, results, TEXT)
    assert {result.attempt for result in results} == {1}


async def test_a_drain_gives_back_the_rest() -> None:
    """A drain without patience: what runs goes back unburnt and runs again after the next start."""
    daemon = Daemon(drain_s=0.0)
    try:
        async with daemon.client() as client:
            ids = await submit_many(client, 10, "one two three !tokens=60 !delay=30ms")
            await running(client, ids, 10)
            assert await asyncio.to_thread(daemon.stop) == 0
            await asyncio.to_thread(daemon.start)
            results = await ended(client, ids)
        await judge(daemon, results, TEXT)
        assert {result.attempt for result in results} == {1}
    finally:
        daemon.close()


async def test_raw_garbage_fails_typed(daemon: Daemon) -> None:
    """A body that a producer wrote raw and broken ends as `failed` with field and remedy; no worker dies."""
    from metamusesd.queues.base import Submission

    workers = daemon.worker_pids()
    async with daemon.client() as client:
        queue: Any = client._queue
        await queue.submit([Submission("raw", b"\xff\x00{{{", "d", 1)])
        result = await client.wait("raw", 10)
    assert result.error is not None
    assert (result.state, result.error["code"]) == ("failed", "invalid_request")
    assert daemon.worker_pids() == workers
