"""Scripts that are stopped half-way, by an ACL that changes under them, lose no job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metamusesd.errors import QueueFault, QueueUnavailable
from metamusesd.job import TERMINAL
from metamusesd.queues.base import INGRESS, Limits, Want
from metamusesd.queues.redis_door import RedisDoor
from metamusesd.queues.redis_queue import RedisQueue
from tests.contract.redis_bench import job, opened, running
from tests.contract.redis_servers import RedisServer, binary_of, end_all
from tests.contract.test_redis_cuts import Story, life

ALLOW = ("ACL", "SETUSER", "muse", "reset", "on", ">secret", "~*", "&*", "+@all")
WRITES = ("hset", "hdel", "zadd", "zrem", "xadd", "del", "set", "pexpire", "lpush", "publish")
PLACES = ("ingress", "leases", "delayed", "ready:fast", "ready:heavy")


@pytest.fixture(params=["redis6", "redis7"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(binary_of(request.param), tmp_path).start()
    server.ask(*ALLOW)
    yield server
    end_all([server])


class Denied:
    """Makes the n-th call of a life once without the right to `write`, then again with it."""

    def __init__(self, server: RedisServer, at: int, write: str) -> None:
        self.server, self.at, self.write, self.story, self.calls = server, at, write, Story(), 0
        self.hit = ""

    async def call(self, name: str, make: Callable[[], Awaitable[Any]]) -> Any:
        self.calls += 1
        if self.calls == self.at:
            self.server.ask("ACL", "SETUSER", "muse", f"-{self.write}")
            try:
                await make()
            except QueueUnavailable as error:
                assert error.trouble == "denied"
                self.hit = name
            self.server.ask(*ALLOW)
        return await self.story.call(name, make)


async def settled_or_standing(door: RedisDoor, queue: RedisQueue) -> list[str]:
    """What is wrong once the reaper has been there: jobs that stand nowhere, ended ones without result or end."""
    await door.ask("DEL", "{metamuse}:recounted")
    await door.script("recount", 1000, 1000)
    wrong = []
    for key in await door.ask("KEYS", "{metamuse}:job:*"):
        id = key.decode().removeprefix("{metamuse}:job:")
        state = (await door.ask("HGET", key, "state")).decode()
        if state in TERMINAL:
            complete = await door.ask("PTTL", key) > 0 and await queue.result(id) is not None
        else:
            scores = [await door.ask("ZSCORE", f"{{metamuse}}:{place}", id) for place in PLACES]
            complete = any(score is not None for score in scores)
        if not complete:
            wrong.append(f"{id} {state}")
    return wrong


async def test_no_job_is_left_standing_nowhere(server: RedisServer) -> None:
    """For every call of a life and every command that writes: denied in the midst of the script, allowed and repeated,
    and after a recount each job stands in a queue or under a lease, or has ended with its result."""
    door, hits, at = RedisDoor(server.url, "{metamuse}", 5.0), set(), 0
    url = server.url.replace("unix://", "unix://muse:secret@")
    while True:
        at, calls = at + 1, 0
        for write in WRITES:
            await door.ask("FLUSHALL")
            async with opened(url, limits=Limits(max_crashes=1)) as queue:
                denied = Denied(server, at, write)
                try:
                    await life(queue, denied.call)
                except ValueError:  # this life wants jobs from a claim that has none now: they come back later
                    assert denied.hit
                calls = max(calls, denied.calls)
                wrong = await settled_or_standing(door, queue)
                assert denied.hit == "revive" or not wrong, f"{denied.hit} without {write}: {wrong}"
                hits.add(denied.hit)
        if calls < at:
            break
    assert {"submit", "claim", "append", "renew", "settle", "requeue", "cancel", "reap"} <= hits
    door.close()


async def test_leases_of_a_wrong_type(server: RedisServer) -> None:
    """Jobs that were claimed while somebody else's key stood in the place of the leases come back when it is gone."""
    async with opened(server.url) as queue:
        await running(queue, "a")
        server.ask("SET", "{metamuse}:leases", "mine")
        await queue.submit([job("b")])
        with pytest.raises(QueueFault):
            await queue.claim("h:1", "n1", [Want(INGRESS, 1)], lease_ms=60_000)
        server.ask("DEL", "{metamuse}:leases")
        server.ask("DEL", "{metamuse}:recounted")
        suspects = (await queue.reap("h:2")).suspects
        while {suspect.id for suspect in suspects} != {"a", "b"}:  # a recount comes with a sweep
            suspects = (await queue.reap("h:2")).suspects
        assert sorted((await queue.reap("h:2", suspects)).requeued) == ["a", "b"]
        assert [claim.id for claim in await queue.claim("h:1", "n2", [Want(INGRESS, 9)], lease_ms=1000)] == ["b"]
