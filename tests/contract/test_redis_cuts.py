"""The connection to Redis is cut at every place of a queue's life: the caller that repeats gets the same effect."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from metamusesd.errors import QueueUnavailable
from metamusesd.queues.base import (
    INGRESS,
    Append,
    Fault,
    Host,
    Limits,
    Requeue,
    Routed,
    Service,
    Settlement,
    Submission,
    Want,
)
from metamusesd.queues.redis_door import RedisDoor
from metamusesd.queues.redis_queue import RedisQueue
from tests.contract.cutting_proxy import Cut, CuttingProxy

CHANGING = {"reap", "push", "drop"}  # what they answer is what this very call changed; its effect is compared
READERS = {"string": ("GET",), "hash": ("HGETALL",), "list": ("LRANGE", 0, -1), "set": ("SMEMBERS",),
           "zset": ("ZRANGE", 0, -1), "stream": ("XRANGE", "-", "+")}  # fmt: skip
Call = Callable[[str, Callable[[], Awaitable[Any]]], Awaitable[Any]]


async def life(queue: RedisQueue, call: Call) -> None:
    """Every script at least once, on jobs that end, die, come back, wait and go."""
    jobs = [Submission(id, b"{}", "d", 1, deadline_ms=60_000, idempotency_key=f"k-{id}") for id in "abcde"]
    await call("configure", queue.configure)
    await call("announce", lambda: queue.announce(Host("h:1", {"fast": Service("m", 1, 2.0)}), 60.0))
    await call("submit", lambda: queue.submit(jobs))
    taken = await call("claim", lambda: queue.claim("h:1", "n1", [Want(INGRESS, 5)], lease_ms=60_000))
    moves = [Routed(job.id, job.token, ("fast", "heavy"), b"{}") for job in taken]
    claims = await call("claim", lambda: queue.claim("h:1", "n2", [Want("fast", 4)], moves, lease_ms=60_000))
    a, b, c, d = (claim.token for claim in claims)
    await call("push", lambda: queue.push("fast"))
    await call("position", lambda: queue.position("e"))
    await call("append", lambda: queue.append([Append("a", a, 0, "he", 1), Append("b", b, 0, "x", 1)]))
    await call("append", lambda: queue.append([Append("a", a, 2, "llo", 1)]))
    await call("renew", lambda: queue.renew([("a", a), ("b", b)], lease_ms=60_000))
    await call("settle", lambda: queue.settle([Settlement("a", a, "done", b'{"request_id":"a"}')]))
    await call("requeue", lambda: queue.requeue([Requeue("b", b, "died", Fault.CRASH_ALONE, evidence=b'{"signal":9}')]))
    await call("requeue", lambda: queue.requeue([Requeue("c", c, "again", Fault.ERROR, delay_ms=60_000)]))
    await call("revive", lambda: queue.revive("b"))
    await call("cancel", lambda: queue.cancel("e"))
    await call("renew", lambda: queue.renew([("d", d)], lease_ms=1))
    await asyncio.sleep(0.003)  # the server's clock must pass the end of that lease
    suspects = (await call("reap", lambda: queue.reap("h:2"))).suspects
    await call("reap", lambda: queue.reap("h:2", suspects))
    (again, *_) = await call("claim", lambda: queue.claim("h:1", "n3", [Want("heavy", 1)], lease_ms=60_000))
    died = Requeue(again.id, again.token, "died", Fault.CRASH_ALONE)
    await call("requeue", lambda: queue.requeue([died]))
    await call("drop", lambda: queue.drop(again.id))
    await call("events", lambda: queue.events("a", "0", block_ms=5))


class Story:
    """What a life answered, with times taken out; each call is repeated until it is answered."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, str]] = []
        self.repeats = 0

    async def call(self, name: str, make: Callable[[], Awaitable[Any]]) -> Any:
        for _ in range(6):
            try:
                answer = await make()
            except QueueUnavailable:
                self.repeats += 1
                continue
            if name not in CHANGING:
                self.answers.append((name, timeless(answer)))
            return answer
        raise AssertionError(f"{name} is never answered")


def timeless(what: object) -> str:
    """Its repr without times, cursors, scores, and whether a submit was a repeated one."""
    return re.sub(r"\d{12,}(-\d+)?|duplicate=\w+", "T", repr(what))


async def picture(door: RedisDoor) -> dict[str, str]:
    """All keys and what they hold; every one but sequence, limits and protocol with or without a time to live."""
    found = {}
    for key in await door.ask("KEYS", "*"):
        kind = (await door.ask("TYPE", key)).decode()
        command, *rest = READERS[kind]
        value = await door.ask(command, key, *rest)
        if kind == "hash":
            value = sorted(zip(value[::2], value[1::2], strict=True))
        mortal = await door.ask("PTTL", key) > 0
        found[key.decode()] = f"{kind} {'mortal' if mortal else 'live'} {timeless(value)}"
    return found


@pytest.fixture(params=["redis6", "redis7"])
async def proxy(request: pytest.FixtureRequest, server_of: Any, tmp_path: Path) -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy(server_of(request.param).socket, tmp_path / "cut.sock") as proxy:
        yield proxy


async def lived(proxy: CuttingProxy, door: RedisDoor, cuts: dict[int, Cut]) -> tuple[Story, dict[str, str], int]:
    """One life on an empty server, cut at these requests of it; what was answered, what is left, how many requests."""
    await door.ask("FLUSHALL")
    proxy.cuts = {}
    queue, story = RedisQueue(proxy.url, limits=Limits(max_crashes=1)), Story()
    await queue.open()
    start = proxy.requests
    proxy.cuts = {start + at: cut for at, cut in cuts.items()}
    await life(queue, story.call)
    await queue.close()
    return story, await picture(door), proxy.requests - start


@pytest.mark.parametrize("cut", Cut, ids=lambda cut: cut.name.lower())
async def test_every_cut_changes_nothing(proxy: CuttingProxy, cut: Cut, server_of: Any) -> None:
    """For every call of a life, with every script in it: cut once, cut again at the reconnection, cut again at the
    repeated call: answers and all keys are those of a life that was never cut."""
    door = RedisDoor(f"unix://{proxy._server}", "{metamuse}", 5.0)
    smooth, left, requests = await lived(proxy, door, {})
    assert requests >= 22 and not smooth.repeats
    for at in range(1, requests + 1):
        for others in ((), (1,), (2,), (1, 2, 3)):
            before = proxy.cut
            story, found, _ = await lived(proxy, door, {at: cut} | {at + other: cut for other in others})
            assert proxy.cut > before, "nothing was cut"
            assert story.answers == smooth.answers, f"cut {cut.value} {at} and {others}"
            assert found == left, f"cut {cut.value} {at} and {others}"
    await door.ask("FLUSHALL")
    door.close()


async def test_many_at_once(proxy: CuttingProxy) -> None:
    """A cut under many concurrent calls: each is repeated by itself, and each job is in the queue once."""
    queue = RedisQueue(proxy.url, "many")
    await queue.open()
    for cut in Cut:
        proxy.cuts = {proxy.requests + n: cut for n in (3, 14, 25)}
        jobs = [[Submission(f"{cut.name}-{n}", b"{}", "d", 1)] for n in range(30)]
        answers = await asyncio.gather(*(Story().call("submit", lambda job=job: queue.submit(job)) for job in jobs))  # type: ignore[misc]
        assert all(answer.id.startswith(cut.name) for (answer,) in answers)
    claims = await queue.claim("h:1", "n", [Want(INGRESS, 1000)], lease_ms=1000)
    assert len({claim.id for claim in claims}) == len(claims) == 90
    for claim in claims:
        await queue.cancel(claim.id)
    await queue.close()
