"""A real dispatcher and real workers as processes, without the supervisor: Redis late, half-open, evicting; drains."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from metamusesd import control
from metamusesd.client import Client
from metamusesd.queues.redis_queue import RedisQueue
from tests.process.dispatcher_rig import RedisServer, Rig, until


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.stop()


@pytest.fixture
def rig(redis: RedisServer) -> Iterator[Rig]:
    made = Rig(redis.url, workers=2, slots=4)
    yield made
    made.close()


async def test_redis_may_come_late(redis: RedisServer) -> None:
    """A dispatcher that finds no Redis waits, takes its links, beats, and works as soon as Redis is there."""
    redis.kill()
    rig = Rig(redis.url)
    try:
        until(lambda: rig.board.dispatcher.get("workers") == 1)
        assert rig.board.dispatcher.get("redis_ok") == 0
        redis.start()
        async with Client(redis.url) as client:
            assert (await client.execute({"user_query": "late but here"}, 10)).content == "late but here"
        until(lambda: rig.board.dispatcher.get("redis_ok") == 1)
    finally:
        rig.close()


async def test_redis_stands_still_for_a_while(redis: RedisServer, rig: Rig) -> None:
    """SIGSTOP of Redis while jobs run: the dispatcher's heart goes on, and afterwards every job is done, once."""
    async with Client(redis.url) as client:
        ids = [(await client.submit({"user_query": "a b c !tokens=50 !delay=5ms"})).id for _ in range(8)]
        until(lambda: rig.board.dispatcher.get("running") == 8)
        os.kill(redis.process.pid, signal.SIGSTOP)
        beat_ns = rig.board.dispatcher.get("beat_ns")
        until(lambda: rig.board.dispatcher.get("beat_ns") - beat_ns > 1_000_000_000)
        os.kill(redis.process.pid, signal.SIGCONT)
        results = await asyncio.gather(*(client.wait(id, 20) for id in ids))
    assert [result.state for result in results] == ["done"] * 8


async def test_a_new_dispatcher_takes_over(redis: RedisServer, rig: Rig) -> None:
    """The next dispatcher of the same instance has its predecessor's jobs at once, unburnt, on the same workers."""
    async with Client(redis.url) as client:
        ids = [(await client.submit({"user_query": "a b c !tokens=100 !delay=5ms"})).id for _ in range(8)]
        until(lambda: rig.board.dispatcher.get("running") == 8)
        rig.dispatcher.kill()
        rig.dispatcher.wait()
        rig.start_dispatcher()
        results = await asyncio.gather(*(client.wait(id, 10) for id in ids))
    assert [(result.state, result.attempt) for result in results] == [("done", 1)] * 8


async def test_a_drain_message_ends_it_with_zero(redis: RedisServer, rig: Rig) -> None:
    """`drain`: nothing more is claimed, what runs is finished, exit 0, and no lease is left."""
    async with Client(redis.url) as client:
        id = (await client.submit({"user_query": "a b c !tokens=50 !delay=5ms"})).id
        until(lambda: rig.board.dispatcher.get("running") == 1)
        control.send(rig.dispatcher.channel, {"do": "drain", "within_s": 10.0})
        assert (await client.wait(id, 10)).state == "done"
        late = (await client.submit({"user_query": "too late"})).id
        assert await asyncio.to_thread(rig.dispatcher.wait) == 0
        assert (await client.status(late)).state == "queued"


async def test_a_wrong_eviction_policy_is_refused(redis: RedisServer) -> None:
    """Redis may evict jobs: the dispatcher says why and leaves with 78."""
    redis.kill()
    redis = RedisServer("--maxmemory-policy", "allkeys-lru")
    rig = Rig(redis.url)
    try:
        said = rig.dispatcher.hear("failed")
        assert said["permanent"] is True
        assert rig.dispatcher.wait() == 78
    finally:
        rig.close()
        redis.stop()


async def test_what_the_board_says(redis: RedisServer, rig: Rig) -> None:
    """Depths, claims, settles and frames stand on the board; all frames sent have been received."""
    async with Client(redis.url) as client:
        await asyncio.gather(*(client.execute({"user_query": "hello"}, 10) for _ in range(50)))
    until(lambda: rig.board.dispatcher.get("settled") == 50)
    for row in range(2):
        until(lambda row=row: rig.board.frames_sent(row) == rig.board.workers[row].get("frames_received"))
    queue = RedisQueue(redis.url)
    await queue.open()
    assert all(not any(depth.by_class) for depth in await queue.depths(["ingress", "fast"]))
    await queue.close()


async def test_jobs_of_a_class_are_served_in_order(redis: RedisServer) -> None:
    """One slot, many jobs: the higher class first, FIFO inside a class."""
    rig = Rig(redis.url, slots=1, reserve_slots=0)
    try:
        async with Client(redis.url) as client:
            first = (await client.submit({"user_query": "first !tokens=30 !delay=10ms"})).id
            until(lambda: rig.board.workers[0].get("slots_used") == 1)
            ids = []
            for n in range(12):
                body = {"user_query": "x !delay=2ms", "priority": ("low", "normal", "high")[n % 3], "id": f"q{n}"}
                ids.append((await client.submit(body)).id)
            await asyncio.gather(*(client.wait(id, 20) for id in (first, *ids)))
            queue = client._queue
            starts = {id: next(e.cursor for e in await queue.events(id) if e.kind == "started") for id in ids}
    finally:
        rig.close()
    order = sorted(ids, key=lambda id: tuple(map(int, starts[id].split("-"))))
    assert order == [f"q{n}" for rest in (2, 1, 0) for n in range(rest, 12, 3)]
