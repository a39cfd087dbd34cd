"""A primary that dies under Sentinel: the queue finds the new one by itself, and what was replicated is all there."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from metamusesd.errors import QueueError, QueueRefused, QueueUnavailable
from metamusesd.queues.base import INGRESS, Receipt, Routed, Settlement, Verdict, Want
from metamusesd.queues.redis_door import RedisDoor
from metamusesd.queues.redis_queue import RedisQueue
from tests.contract.redis_bench import insist, job, opened
from tests.contract.redis_servers import RedisServer, binary_of, end_all, free_ports, wait_until

T = TypeVar("T")
DOWN_AFTER_MS, FAILOVER_MS = 500, 5000


class Watched:
    """A primary, a replica, and sentinels that watch them, all on loopback."""

    def __init__(self, folder: Path, sentinels: int, kind: str = "redis7") -> None:
        ports = free_ports(2 + sentinels)
        binary = binary_of(kind)
        options = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        places = [folder / name for name in ("primary", "replica", *(f"sentinel{n}" for n in range(sentinels)))]
        for place in places:
            place.mkdir()
        self.primary = RedisServer(binary, places[0], options, port=ports[0])
        self.replica = RedisServer(
            binary, places[1], (*options, "--replicaof", "127.0.0.1", str(ports[0])), port=ports[1]
        )
        lines = (
            f"sentinel monitor muse 127.0.0.1 {ports[0]} {sentinels // 2 + 1}",
            f"sentinel down-after-milliseconds muse {DOWN_AFTER_MS}",
            f"sentinel failover-timeout muse {FAILOVER_MS}",
        )
        self.sentinels = [
            RedisServer(binary, place, port=port, sentinel=lines)
            for place, port in zip(places[2:], ports[2:], strict=True)
        ]

    @property
    def url(self) -> str:
        return f"sentinel://{','.join(f'127.0.0.1:{each.port}' for each in self.sentinels)}/muse"

    def start(self) -> Watched:
        self.primary.start()
        self.replica.start()
        wait_until(lambda: b"master_link_status:up" in self.replica.ask("INFO", "replication"), "replication")
        for each in self.sentinels:
            each.start()
        for each in self.sentinels:
            wait_until(lambda each=each: self.knows_all(each), "the sentinels' acquaintance")  # type: ignore[misc]
        return self

    def knows_all(self, sentinel: RedisServer) -> bool:
        facts = sentinel.ask("INFO", "sentinel")
        return f"slaves=1,sentinels={len(self.sentinels)}".encode() in facts

    def end(self) -> None:
        end_all([self.primary, self.replica, *self.sentinels])


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def make(sentinels: int, kind: str = "redis7") -> Watched:
        made.append(Watched(tmp_path, sentinels, kind))
        return made[-1].start()

    yield make
    for each in made:
        each.end()


@pytest.mark.parametrize(
    ("kind", "sentinels", "how"),
    [("redis6", 1, "kill"), ("redis7", 3, "kill"), pytest.param("redis7", 1, "stop", marks=pytest.mark.slow_fault)],
)
async def test_a_primary_dies(watched: Callable[..., Watched], kind: str, sentinels: int, how: str) -> None:
    """The primary is killed, or falls silent, under submits, held jobs and blocked reads. The same queue goes on with
    the new primary; every job whose submit was followed by WAIT is there, its token holds; what was accepted without,
    may be gone. The old one, when it wakes, is not used any more."""
    place = watched(sentinels, kind)
    async with opened(place.url, 2.0) as queue:
        await queue.submit([job("held")])
        (taken,) = await queue.claim("h:1", "n1", [Want(INGRESS, 1)], lease_ms=60_000)
        move = Routed(taken.id, taken.token, ("fast",), b"{}")
        (held,) = await queue.claim("h:1", "n2", [Want("fast", 1)], [move], lease_ms=60_000)
        safe = [f"safe{n}" for n in range(50)]
        await queue.submit([job(id) for id in safe])
        assert await queue._door.ask("WAIT", 1, 5000) == 1
        waiting = asyncio.ensure_future(queue.wait(["heavy"], 30))
        reading = asyncio.ensure_future(queue.events("safe0", block_ms=30_000))
        loose = [answer for n in range(50) for answer in await queue.submit([job(f"loose{n}")])]
        place.primary.stop() if how == "kill" else place.primary.signal(signal.SIGSTOP)
        seen: set[str] = set()
        (late,) = await insist(lambda: queue.submit([job("late")]), seen)
        assert isinstance(late, Receipt) and seen
        for blocked in (waiting, reading):
            with pytest.raises(QueueUnavailable):
                await blocked
        end = Settlement("held", held.token, "done", b"{}")
        assert await insist(lambda: queue.settle([end])) == [Verdict.OK]
        assert await insist(lambda: queue.wait(["heavy"], 0.01)) is False
        claims = await queue.claim("h:1", "n3", [Want(INGRESS, 500)], lease_ms=60_000)
        there = {claim.id for claim in claims}
        assert set(safe) | {"late"} <= there
        lost = {answer.id for answer in loose if isinstance(answer, Receipt)} - there
        for id in lost:  # the window: their producers submit the same id again, and it is a new job
            (again,) = await queue.submit([job(id)])
            assert isinstance(again, Receipt) and not again.duplicate
        if how == "stop":
            place.primary.signal(signal.SIGCONT)
            wait_until(lambda: b"role:slave" in place.primary.ask("INFO", "replication"), "the old one's demotion")
            assert (await queue.submit([job("late")]))[0] == Receipt("late", "running", duplicate=True)


async def test_a_sentinel_that_is_away(watched: Callable[..., Watched]) -> None:
    """A sentinel that nobody finds, one that never answers and one that knows no such master are passed over."""
    place = watched(1)
    mute = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    stranger = watched_by_nobody(place)
    nowhere, silent, knowing = free_ports(1)[0], mute.sockets[0].getsockname()[1], place.sentinels[0].port
    hosts = ",".join(f"127.0.0.1:{port}" for port in (nowhere, silent, stranger.port, knowing))
    try:
        async with opened(f"sentinel://{hosts}/muse", timeout_s=4.0) as queue:
            assert isinstance((await queue.submit([job("a")]))[0], Receipt)
            assert await queue.wait(["fast"], 0.01) is False
        with pytest.raises(QueueUnavailable, match="knows no master other"):
            await RedisQueue(f"sentinel://127.0.0.1:{knowing}/other").open()
    finally:
        end_all([stranger])
        mute.close()


def watched_by_nobody(place: Watched) -> RedisServer:
    """A sentinel that watches nothing."""
    folder = place.primary.folder.parent / "stranger"
    folder.mkdir()
    return RedisServer(place.primary.binary, folder, port=free_ports(1)[0], sentinel=("# nothing",)).start()


async def test_only_a_primary_is_believed(watched: Callable[..., Watched], tmp_path: Path) -> None:
    """A server that a sentinel calls the master and that says otherwise itself is not used; once it is, it is."""
    place = watched(1)
    place.primary.ask("REPLICAOF", "127.0.0.1", place.replica.port)
    door = RedisDoor(place.url, "{m}", 2.0)
    with pytest.raises(QueueError) as caught:
        await door.open()
    assert isinstance(caught.value, QueueUnavailable) and caught.value.trouble == "read_only"
    place.primary.ask("REPLICAOF", "NO", "ONE")
    await insist(door.open)
    door.close()


async def test_passwords(watched: Callable[..., Watched]) -> None:
    """The sentinels' password and the servers' are two, both from the URL."""
    place = watched(1)
    place.primary.ask("CONFIG", "SET", "requirepass", "server's")
    place.sentinels[0].ask("ACL", "SETUSER", "default", "resetpass", ">sentinel's")
    host = f"127.0.0.1:{place.sentinels[0].port}"
    with pytest.raises(QueueRefused):
        await RedisQueue(f"sentinel://:server%27s@{host}/muse").open()
    async with opened(f"sentinel://:server%27s@{host}/muse/1?sentinel_password=sentinel%27s") as queue:
        assert isinstance((await queue.submit([job("a")]))[0], Receipt)
        assert "server's" not in repr(queue) and "sentinel's" not in repr(queue)
