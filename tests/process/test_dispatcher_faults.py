"""A real dispatcher and real workers: fenced after a stop, poison and its neighbours, cut replies, retirement."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import redis as stock

from metamusesd import control
from metamusesd.client import Client
from metamusesd.queues.base import JobEvent
from metamusesd.queues.redis_queue import RedisQueue
from tests.contract.cutting_proxy import Cut, CuttingProxy
from tests.process.dispatcher_rig import RedisServer, Rig, until

ENDS = ("done", "failed", "cancelled", "expired", "dead")


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.stop()


@asynccontextmanager
async def tended(rig: Rig) -> AsyncIterator[None]:
    """Its dead workers are replaced meanwhile."""
    tending = asyncio.get_running_loop().create_task(rig.tend())
    try:
        yield
    finally:
        tending.cancel()
        await asyncio.wait([tending])


async def events_of(redis: RedisServer, id: str) -> list[JobEvent]:
    queue = RedisQueue(redis.url)
    await queue.open()
    try:
        return await queue.events(id)
    finally:
        await queue.close()


async def says_something(redis: RedisServer, id: str) -> None:
    async with asyncio.timeout(10):
        while not any(event.kind == "token" for event in await events_of(redis, id)):
            await asyncio.sleep(0.005)


def judge_stream(events: list[JobEvent], content: str) -> None:
    """One restart, then the whole text without a gap or a foreign piece, then one end."""
    kinds = [event.kind for event in events]
    assert kinds.count("restarted") == 1
    assert [kind for kind in kinds if kind in ENDS] == ["done"]
    assert kinds[-1] == "done"
    text = ""
    for event in events[kinds.index("restarted") :]:
        if event.kind == "token":
            assert event.offset == len(text)
            text += event.text
    assert text == content


async def leave(rig: Rig, dispatcher: object) -> None:
    """It resumes and drains: when it has left, it has tried to write all that it had."""
    dispatcher.kill(signal.SIGCONT)  # type: ignore[attr-defined]
    control.send(dispatcher.channel, {"do": "drain", "within_s": 5.0})  # type: ignore[attr-defined]
    assert await asyncio.to_thread(dispatcher.wait) == 0  # type: ignore[attr-defined]


async def test_a_stopped_dispatcher_is_fenced_off(redis: RedisServer) -> None:
    """SIGSTOP; the next dispatcher of the same host takes over and finishes; SIGCONT: not a word of it is written."""
    rig = Rig(redis.url, lease_s=1.0)
    try:
        async with Client(redis.url) as client:
            id = (await client.submit({"user_query": "one two three !tokens=300 !delay=3ms"})).id
            await says_something(redis, id)
            old = rig.dispatcher
            old.kill(signal.SIGSTOP)
            said = rig.board.workers[0].get("generated_tokens")
            until(lambda: rig.board.workers[0].get("generated_tokens") > said + 20)  # they wait in the pipe
            rig.start_dispatcher()
            result = await client.wait(id, 20)
            await leave(rig, old)
        assert result.state == "done"
        judge_stream(await events_of(redis, id), result.content)
    finally:
        rig.close()


async def test_another_host_takes_over(redis: RedisServer) -> None:
    """SIGSTOP beyond the lease: another host reaps and finishes; SIGCONT: appends and the end are `lost`."""
    first = Rig(redis.url, lease_s=1.0)
    second = None
    try:
        async with Client(redis.url) as client:
            id = (await client.submit({"user_query": "one two three !tokens=300 !delay=3ms"})).id
            await says_something(redis, id)
            first.dispatcher.kill(signal.SIGSTOP)
            second = Rig(redis.url, lease_s=1.0, instance="11111111-other")
            result = await client.wait(id, 30)
            await leave(first, first.dispatcher)
        assert result.state == "done"
        judge_stream(await events_of(redis, id), result.content)
    finally:
        first.close()
        if second is not None:
            second.close()


async def test_poison_and_its_neighbours(redis: RedisServer) -> None:
    """Eight innocents and a poison on one worker: it dies alone, they are done and pay at most twice."""
    rig = Rig(redis.url, slots=9)
    try:
        async with tended(rig), Client(redis.url) as client:
            ids = [(await client.submit({"user_query": "x !tokens=30 !delay=10ms"})).id for _ in range(8)]
            poison = (await client.submit({"user_query": "a b c d e f !delay=20ms !crash=step5"})).id
            results = await asyncio.gather(*(client.wait(id, 40) for id in ids))
            dead = await client.wait(poison, 40)
            queue = RedisQueue(redis.url)
            await queue.open()
            view = await queue.view(poison)
            await queue.close()
    finally:
        rig.close()
    assert [result.state for result in results] == ["done"] * 8
    assert max(result.attempt for result in results) <= 3
    assert dead.state == "dead"
    assert rig.deaths == 3
    assert view is not None and view.crashes == 3
    told = [json.loads(piece) for piece in view.evidence]
    assert [piece["alone"] for piece in told] == [False, False, True]
    assert (told[-1]["how"], told[-1]["neighbours"], told[-1]["worker"]) == ("exit -6", 0, "fast-0")


@pytest.mark.slow_fault
@pytest.mark.timeout(240)
async def test_fifty_equal_poisons(redis: RedisServer) -> None:
    """They crash together, then each by itself: all dead, the one innocent among them done, and nothing is left."""
    rig = Rig(redis.url, workers=2)
    try:
        async with tended(rig), Client(redis.url) as client:
            ids = [(await client.submit({"user_query": "a b c d !crash=step3"})).id for _ in range(50)]
            innocent = (await client.submit({"user_query": "x !tokens=30 !delay=5ms"})).id
            results = await asyncio.gather(*(client.wait(id, 200) for id in ids))
            assert (await client.wait(innocent, 200)).state == "done"
    finally:
        rig.close()
    assert {result.state for result in results} == {"dead"}
    assert rig.deaths <= 50 + 2 * 50


async def test_an_operator_s_kill_blames_nobody(redis: RedisServer) -> None:
    """The worker was killed from outside: its job runs again as attempt 2 and has no crash."""
    rig = Rig(redis.url)
    try:
        async with Client(redis.url) as client:
            id = (await client.submit({"user_query": "one two three !tokens=100 !delay=5ms"})).id
            await says_something(redis, id)
            rig.fleet[0].kill()
            rig.replace(rig.fleet[0], killed=True)
            result = await client.wait(id, 20)
            status = await client.status(id)
    finally:
        rig.close()
    assert (result.state, result.attempt, status.crashes) == ("done", 2, 0)


async def test_a_worker_that_is_asked_to_leave(redis: RedisServer) -> None:
    """SIGTERM of a worker at work: its job runs again as if nothing had been, its text from the beginning."""
    rig = Rig(redis.url)
    try:
        async with tended(rig), Client(redis.url) as client:
            id = (await client.submit({"user_query": "one two three !tokens=100 !delay=5ms"})).id
            await says_something(redis, id)
            rig.fleet[0].kill(signal.SIGTERM)
            result = await client.wait(id, 20)
            status = await client.status(id)
        judge_stream(await events_of(redis, id), result.content)
    finally:
        rig.close()
    assert (result.state, result.attempt, status.crashes) == ("done", 1, 0)


async def test_who_ends_its_worker_quietly_is_poison(redis: RedisServer) -> None:
    """A job that makes the process exit with 0 is dead after the third worker, like any other poison."""
    rig = Rig(redis.url)
    try:
        async with tended(rig), Client(redis.url) as client:
            id = (await client.submit({"user_query": "a b !exit=0"})).id
            assert (await client.wait(id, 20)).state == "dead"
            assert (await client.execute({"user_query": "and on"}, 10)).content == "and on"
    finally:
        rig.close()
    assert rig.deaths == 3


async def test_a_retryable_error_is_retried_so_often(redis: RedisServer) -> None:
    """An engine that fails each time: after queue.max_retries the job has that error, and no crash."""
    rig = Rig(redis.url)
    try:
        async with Client(redis.url) as client:
            id = (await client.submit({"user_query": "a b c !fail=step2"})).id
            result = await client.wait(id, 20)
            status = await client.status(id)
    finally:
        rig.close()
    assert result.error is not None
    assert (result.state, result.error["code"], result.attempt) == ("failed", "engine_failed", 4)
    assert status.crashes == 0


@pytest.mark.parametrize("key", ["events", "job"])
async def test_a_foreign_key_stops_one_job_at_most(redis: RedisServer, key: str) -> None:
    """Somebody puts a string in the place of one job's key: its neighbour is done, and the dispatcher lives."""
    rig = Rig(redis.url)
    try:
        async with Client(redis.url) as client:
            query = {"user_query": "one two three !tokens=100 !delay=5ms"}
            broken, fine = (await client.submit(query)).id, (await client.submit(query)).id
            await says_something(redis, broken)
            with stock.Redis(unix_socket_path=str(redis.socket)) as plain:
                plain.set(f"{{metamuse}}:{key}:{broken}", "mine")
            assert (await client.wait(fine, 20)).state == "done"
            assert (await client.execute({"user_query": "and on"}, 10)).content == "and on"
        assert not rig.dispatcher.gone()
    finally:
        rig.close()


@pytest.mark.parametrize("cut", list(Cut))
async def test_no_claim_is_orphaned(redis: RedisServer, cut: Cut) -> None:
    """Connections are cut around every claim: each job is done in its first attempt, long before a lease could end.

    A claim without an answer is repeated with its nonce and brings the same jobs: nothing is held that nobody knows.
    """
    async with CuttingProxy(redis.socket, redis.directory / "proxy.sock") as proxy, Client(redis.url) as client:
        rig = await asyncio.to_thread(Rig, proxy.url, lease_s=600.0)
        try:
            await client.execute({"user_query": "all is up"}, 10)
            for count in (1, 2, 3, 4, 5, 6):
                ids = [(await client.submit({"user_query": f"{n} of {count}"})).id for n in range(count)]
                proxy.cut_next(*[cut] * count)
                results = await asyncio.gather(*(client.wait(id, 20) for id in ids))
                assert [(result.state, result.attempt) for result in results] == [("done", 1)] * count
            assert proxy.cut > 6
            with stock.Redis(unix_socket_path=str(redis.socket)) as plain:
                assert plain.zcard("{metamuse}:leases") == 0
        finally:
            rig.close()


async def test_a_worker_retires(redis: RedisServer) -> None:
    """`retire`: what it has is finished, what comes later waits, and `retired` is said."""
    rig = Rig(redis.url)
    try:
        async with Client(redis.url) as client:
            first = (await client.submit({"user_query": "one !tokens=60 !delay=5ms"})).id
            await says_something(redis, first)
            worker = rig.fleet[0]
            control.send(rig.dispatcher.channel, {"do": "retire", "row": 0, "epoch": worker.epoch})
            second = (await client.submit({"user_query": "two"})).id
            said = await asyncio.to_thread(rig.dispatcher.hear, "retired")
            assert (said["row"], said["epoch"]) == (0, worker.epoch)
            assert (await client.wait(first, 10)).attempt == 1
            assert (await client.status(second)).state in ("queued", "ready")
            worker.kill(signal.SIGTERM)
            await asyncio.to_thread(rig.replace, worker)
            assert (await client.wait(second, 10)).attempt == 1
    finally:
        rig.close()
