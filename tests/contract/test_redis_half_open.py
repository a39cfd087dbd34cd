"""Redis stopped, and connections open at one end only: every call ends in time, and its repetition is right."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from metamusesd.queues.base import (
    INGRESS,
    Append,
    Fault,
    Receipt,
    Requeue,
    Routed,
    Settlement,
    Verdict,
    Want,
)
from metamusesd.queues.redis_queue import RedisQueue
from tests.contract.cutting_proxy import CuttingProxy
from tests.contract.redis_bench import insist, job, opened, trouble_of
from tests.contract.redis_servers import RedisServer

OK, LOST = Verdict.OK, Verdict.LOST
T = TypeVar("T")


@pytest.mark.parametrize("over", ["unix", "tcp"])
async def test_a_stopped_server(server: RedisServer, over: str) -> None:
    """A server that is stopped: each call ends with QueueUnavailable. Once it goes on, it does what it was sent, late,
    and the same call again gets the answer of one that was made once."""
    async with opened(server.url if over == "unix" else server.tcp_url, 0.25) as queue:

        async def stopped(make: Callable[[], Awaitable[T]]) -> T:
            server.signal(signal.SIGSTOP)
            assert await trouble_of(make()) == "unreachable"
            assert await trouble_of(make()) == "unreachable"
            server.signal(signal.SIGCONT)
            return await insist(make)

        (a, b) = await stopped(lambda: queue.submit([job("a"), job("b")]))
        assert isinstance(a, Receipt) and isinstance(b, Receipt)
        taken = await stopped(lambda: queue.claim("h:1", "n1", [Want(INGRESS, 2)], lease_ms=60_000))
        moves = [Routed(claim.id, claim.token, ("fast",), b"{}") for claim in taken]
        first, second = await stopped(lambda: queue.claim("h:1", "n2", [Want("fast", 2)], moves, lease_ms=60_000))
        assert (first.id, second.id, first.attempt) == ("a", "b", 1)
        assert await stopped(lambda: queue.append([Append("a", first.token, 0, "hi", 1)])) == [OK]
        back = Requeue("b", second.token, "again", Fault.ERROR)
        assert await stopped(lambda: queue.requeue([back])) == [OK]
        end = Settlement("a", first.token, "done", b"{}")
        assert await stopped(lambda: queue.settle([end])) == [OK]
        kinds = [event.kind for event in await queue.events("a")]
        assert [kind for kind in kinds if kind != "queued"] == ["started", "token", "done"]
        view = await queue.view("b")
        assert view is not None and (view.retries, view.state) == (1, "ready")
        (again,) = await queue.claim("h:1", "n3", [Want("fast", 9)], lease_ms=60_000)
        assert (again.id, again.attempt) == ("b", 2)


async def test_blocked_reads_at_a_stopped_server(server: RedisServer) -> None:
    """A blocked read does not wait for ever for a server that is stopped."""
    async with opened(server.tcp_url, 0.25) as queue:
        waiting = asyncio.ensure_future(queue.wait([INGRESS], 0.1))
        reading = asyncio.ensure_future(queue.events("a", block_ms=100))
        await queue.view("a")
        server.signal(signal.SIGSTOP)
        troubles = {await trouble_of(waiting), await trouble_of(reading)}
        server.signal(signal.SIGCONT)
        assert troubles == {"unreachable"}
        assert await insist(lambda: queue.wait([INGRESS], 0.001)) is False


@pytest.mark.parametrize("over", ["unix", "tcp"])
async def test_a_half_open_connection(server: RedisServer, tmp_path: Path, over: str) -> None:
    """Behind a relay that takes everything and passes nothing on, old and new connections time out; many calls share
    the attempts. When it passes things on again, so does the queue."""
    async with (
        CuttingProxy(server.socket, tmp_path / "relay.sock") as relay,
        opened(relay.url if over == "unix" else relay.tcp_url, 0.25) as queue,
    ):
        relay.swallow, before = True, relay.connections
        for _ in range(2):
            calls = [trouble_of(queue.submit([job(f"j{n}")])) for n in range(50)]
            assert set(await asyncio.gather(*calls)) == {"unreachable"}
        assert relay.connections - before <= 2
        stranger = RedisQueue(relay.url, timeout_s=0.25)
        assert await trouble_of(stranger.open()) == "unreachable"
        relay.swallow = False
        await queue.submit([job("a")])
        await stranger.open()
        await stranger.close()


async def test_closed_while_it_connects(server: RedisServer, tmp_path: Path) -> None:
    """Closing ends calls that wait for a connection, as errors of the queue; opened again at once, it works."""
    async with CuttingProxy(server.socket, tmp_path / "relay.sock") as relay:
        queue, relay.swallow = RedisQueue(relay.url), True
        calls = [asyncio.ensure_future(trouble_of(queue.submit([job("a")]))) for _ in range(3)]
        await asyncio.sleep(0)  # they ask for the connection
        await queue.close()
        relay.swallow = False
        await queue.open()
        assert await asyncio.gather(*calls) == ["unreachable"] * 3
        assert await queue.view("a") is None
        await queue.close()
