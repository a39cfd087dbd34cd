"""Three masters on loopback: the queue finds its slot, follows it when it moves, and writes nowhere else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from metamusesd.errors import QueueUnavailable
from metamusesd.queues.base import (
    INGRESS,
    Append,
    Limits,
    Receipt,
    Settlement,
    Verdict,
    Want,
)
from tests.contract.redis_bench import insist, job, opened, running
from tests.contract.redis_servers import RedisServer, binary_of, end_all, free_ports, wait_until
from tests.contract.test_redis_cuts import Story, life

T = TypeVar("T")
OK = Verdict.OK
SLOTS = 16384


class Cluster:
    """Masters that share the slots evenly; replicas when asked for."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.binary = folder, binary_of(kind)
        self.nodes = [self._node() for _ in range(3)]
        bounds = [SLOTS * n // 3 for n in range(4)]
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.ask("CLUSTER", "ADDSLOTS", *range(bounds[number], bounds[number + 1]))
            node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        self.wait_ok(3)

    def _node(self) -> RedisServer:
        (port,) = free_ports(1)
        folder = self.folder / f"node{port}"
        folder.mkdir()
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0")
        return RedisServer(self.binary, folder, options, port=port).start()

    def wait_ok(self, known: int) -> None:
        words = (b"cluster_state:ok", f"cluster_known_nodes:{known}\r".encode())
        for node in self.nodes:
            wait_until(lambda node=node: all(word in node.ask("CLUSTER", "INFO") for word in words), "the cluster")  # type: ignore[misc]

    def slot(self, tag: str) -> int:
        return int(self.nodes[0].ask("CLUSTER", "KEYSLOT", tag)[1:])

    def owner(self, tag: str) -> RedisServer:
        """The node that holds the slot of a hash tag."""
        return next(node for node in self.nodes if not node.ask("HGET", f"{{{tag}}}", "x").startswith(b"-MOVED"))

    def id_of(self, node: RedisServer) -> str:
        return node.ask("CLUSTER", "MYID").split(b"\r\n")[1].decode()

    def add_replica(self, of: RedisServer) -> RedisServer:
        replica = self._node()
        replica.ask("CLUSTER", "MEET", "127.0.0.1", of.port)
        self.nodes.append(replica)
        self.wait_ok(4)
        replica.ask("CLUSTER", "REPLICATE", self.id_of(of))
        wait_until(lambda: b"master_link_status:up" in replica.ask("INFO", "replication"), "replication")
        return replica

    def keys(self, node: RedisServer) -> list[str]:
        return re.findall(r"\$\d+\r\n([^\r]*)\r\n", node.ask("KEYS", "*").decode())


@pytest.fixture(scope="module", params=["redis6", "redis7"])
def masters(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp(request.param), request.param)
    yield cluster
    end_all(cluster.nodes)


@pytest.fixture
def cluster(masters: Cluster) -> Cluster:
    """An empty one. The last test of this file kills a node of it."""
    for node in masters.nodes:
        node.ask("FLUSHALL")
    return masters


async def test_the_whole_path(cluster: Cluster) -> None:
    """Whichever node a URL names, and whichever holds the slot: every step of a job, and blocked reads, find it."""
    urls = [node.tcp_url for node in cluster.nodes]
    urls += [f"cluster://127.0.0.1:1,127.0.0.1:{cluster.nodes[n].port}" for n in range(3)]
    for number, url in enumerate(urls):
        async with opened(url, 2.0, prefix=f"q{number}") as queue:
            reading = asyncio.ensure_future(queue.events("a", block_ms=5000))
            (claim,) = await running(queue, "a")
            assert (await reading)[0].kind in ("queued", "started")
            assert await queue.append([Append("a", claim.token, 0, "hi", 1)]) == [OK]
            assert await queue.settle([Settlement("a", claim.token, "done", b'{"x":1}')]) == [OK]
            assert await queue.result("a") == b'{"x":1}'
            waiting = asyncio.ensure_future(queue.wait([INGRESS], 5))
            await queue.submit([job("b")])
            assert await waiting
            assert await queue.cancel("b") == "cancelled"


async def test_no_key_outside_the_slot(cluster: Cluster) -> None:
    """Every script of a queue's life runs on one node; all its keys are in one slot, on that node."""
    async with opened(cluster.nodes[0].tcp_url, 2.0, limits=Limits(max_crashes=1)) as queue:
        story = Story()
        await life(queue, story.call)
        assert not story.repeats
    owner, slot = cluster.owner("metamuse"), cluster.slot("metamuse")
    keys = cluster.keys(owner)
    assert len(keys) > 8 and {cluster.slot(key) for key in keys} == {slot}
    assert all(cluster.keys(node) == [] for node in cluster.nodes if node is not owner)


def move_keys(cluster: Cluster, source: RedisServer, target: RedisServer, keys: list[str]) -> None:
    for key in keys:
        assert source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000).startswith(b"+")


async def test_a_slot_moves(cluster: Cluster) -> None:
    """While a slot is on its way, half of its keys here and half there: reads find each, scripts wait and touch
    neither half. When it has arrived, held jobs go on, producers' jobs are each there once, nothing was left behind."""
    slot, source = cluster.slot("metamuse"), cluster.owner("metamuse")
    target = next(node for node in cluster.nodes if node is not source)
    async with opened(source.tcp_url, 2.0) as queue, opened(target.tcp_url, 2.0) as other:
        a, b = await running(queue, "a", "b")
        await queue.append([Append("a", a.token, 0, "hi", 1)])
        waiting = asyncio.ensure_future(insist(lambda: queue.wait(["heavy"], 0.05)))
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
        move_keys(cluster, source, target, ["{metamuse}:job:a", "{metamuse}:events:a", "{metamuse}:ingress"])
        for each in (queue, other):
            for call in (each.submit([job("late")]), each.settle([Settlement("b", b.token, "done", b"{}")])):
                with pytest.raises(QueueUnavailable) as caught:
                    await call
                assert caught.value.trouble == "busy"
            views = [await each.view(id) for id in "ab"]
            assert [view.state for view in views if view] == ["running", "running"]
            assert [event.kind for event in await each.events("a", block_ms=10)][-1] == "token"
        producing = [asyncio.ensure_future(insist(lambda n=n: other.submit([job(f"p{n}")]))) for n in range(20)]  # type: ignore[misc]
        move_keys(cluster, source, target, cluster.keys(source))
        for node in (target, source, *cluster.nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", cluster.id_of(target))
        assert all(isinstance(answer, Receipt) for (answer,) in await asyncio.gather(*producing))
        ends = [Settlement(claim.id, claim.token, "done", b"{}") for claim in (a, b)]
        assert await insist(lambda: queue.settle(ends)) == [OK, OK]
        assert await waiting is False
        claims = await queue.claim("h:1", "n3", [Want(INGRESS, 100)], lease_ms=1000)
        assert sorted(claim.id for claim in claims) == sorted(f"p{n}" for n in range(20))
    assert cluster.keys(source) == []


async def test_a_master_dies(cluster: Cluster) -> None:
    """The node that holds the queue is killed, and it is the only one that the URL names: the queue goes on with the
    replica that takes its place."""
    owner = cluster.owner("metamuse")
    cluster.add_replica(owner)
    async with opened(owner.tcp_url, 2.0) as queue:
        (claim,) = await running(queue, "a")
        assert await queue._door.ask("WAIT", 1, 5000) == 1
        waiting = asyncio.ensure_future(queue.wait(["heavy"], 60))
        await queue.view("a")
        owner.stop()
        with pytest.raises(QueueUnavailable):
            await waiting
        seen: set[str] = set()
        end = Settlement("a", claim.token, "done", b"{}")
        assert await insist(lambda: queue.settle([end]), seen) == [OK]
        assert seen <= {"unreachable", "busy", "read_only", "loading"}
        assert await insist(lambda: queue.wait(["heavy"], 0.01)) is False
