"""Redis in every kind of trouble: the queue says which, loses nothing, and goes on by itself afterwards."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from metamusesd.errors import QueueFault, QueueRefused, QueueUnavailable
from metamusesd.queues.base import (
    INGRESS,
    Append,
    Receipt,
    Requeue,
    Settlement,
    Submission,
    Verdict,
    Want,
)
from metamusesd.queues.redis_queue import RedisQueue
from tests.contract.redis_bench import insist, job, opened, running, trouble_of
from tests.contract.redis_servers import RedisServer, binary_of, end_all, free_ports, wait_until

OK, LOST = Verdict.OK, Verdict.LOST
T = TypeVar("T")


@pytest.fixture
async def queue(server: RedisServer) -> AsyncIterator[RedisQueue]:
    async with opened(server.url, 5.0) as queue:
        yield queue


async def test_a_flushed_server(server: RedisServer, queue: RedisQueue) -> None:
    """After FLUSHALL and SCRIPT FLUSH the queue is empty and says so: lost, gone, nothing. New jobs are taken."""
    (claim,) = await running(queue, "a")
    server.ask("FLUSHALL")
    server.ask("SCRIPT", "FLUSH")
    assert await queue.renew([("a", claim.token)], lease_ms=1000) == [LOST]
    assert await queue.append([Append("a", claim.token, 0, "x", 1)]) == [LOST]
    assert await queue.requeue([Requeue("a", claim.token, "x")]) == [LOST]
    assert await queue.settle([Settlement("a", claim.token, "done", b"{}")]) == [LOST]
    assert await queue.cancel("a") == "gone" and await queue.revive("a") == "gone" and await queue.drop("a") == "gone"
    assert await queue.view("a") is None and await queue.result("a") is None and await queue.position("a") is None
    assert await queue.events("a") == [] and await queue.hosts() == [] and await queue.dead() == []
    assert await queue.claim("h:1", "third", [Want(INGRESS, 9), Want("fast", 9)], lease_ms=1000) == []
    assert (await queue.reap("h:1", tiers=["fast"], takeover=True)).requeued == ()
    (again,) = await running(queue, "a")
    assert await queue.settle([Settlement("a", again.token, "done", b"{}")]) == [OK]


async def test_full_memory(server: RedisServer, queue: RedisQueue) -> None:
    """With memory full, new jobs are refused with that trouble; held ones are renewed, settled, given back, cancelled;
    text that is refused is taken later."""
    a, b, c, d = await running(queue, "a", "b", "c", "d")
    server.ask("CONFIG", "SET", "maxmemory", 1)
    assert await trouble_of(queue.submit([job("e")])) == "memory"
    assert await queue.renew([("a", a.token)], lease_ms=60_000) == [OK]
    assert await queue.settle([Settlement("b", b.token, "done", b"{}")]) == [OK]
    assert await queue.requeue([Requeue("c", c.token, "x")]) == [OK]
    assert await queue.cancel("d") == "cancelled"
    append = Append("a", a.token, 0, "x", 1)
    answers: set[str] = set()
    trying = asyncio.ensure_future(insist(lambda: queue.append([append]), answers))
    assert await queue.result("b") == b"{}"
    server.ask("CONFIG", "SET", "maxmemory", 0)
    assert await trying == [OK] and answers <= {"memory"}
    assert isinstance((await queue.submit([job("e")]))[0], Receipt)
    assert d.id == "d"


async def test_a_replica(server: RedisServer, queue: RedisQueue) -> None:
    """A server that becomes a replica refuses writes and lets blocked reads go; a primary again, it takes up."""
    (claim,) = await running(queue, "a")
    waiting = asyncio.ensure_future(queue.wait([INGRESS], 30))
    await queue.view("a")
    server.ask("REPLICAOF", "127.0.0.1", 1)
    assert await trouble_of(waiting) in ("read_only", "unreachable")
    for call in (
        queue.submit([job("b")]),
        queue.append([Append("a", claim.token, 0, "x", 1)]),
        queue.settle([Settlement("a", claim.token, "done", b"{}")]),
        queue.reap("h:1", takeover=True),
    ):
        assert await trouble_of(call) == "read_only"
    server.ask("REPLICAOF", "NO", "ONE")
    assert await queue.settle([Settlement("a", claim.token, "done", b"{}")]) == [OK]


async def test_too_few_replicas(server: RedisServer, queue: RedisQueue) -> None:
    """A primary that has lost the replicas which it is to have is busy, and nothing else."""
    server.ask("CONFIG", "SET", "min-replicas-to-write", 1)
    assert await trouble_of(queue.submit([job("a")])) == "busy"
    server.ask("CONFIG", "SET", "min-replicas-to-write", 0)
    assert isinstance((await queue.submit([job("a")]))[0], Receipt)


async def test_a_busy_server(server: RedisServer, queue: RedisQueue) -> None:
    """While somebody else's script holds the server, the queue is busy; a new connection hears the same."""
    await queue.submit([job("a")])
    server.ask("CONFIG", "SET", "lua-time-limit", 10)
    blocked = asyncio.get_running_loop().run_in_executor(None, server.ask, "EVAL", "while true do end", 0)
    late = RedisQueue(server.url)
    seen: set[str] = set()
    while "busy" not in seen:
        await asyncio.sleep(0.01)
        try:
            await queue.submit([job("b")])
        except QueueUnavailable as error:
            seen.add(error.trouble)
    assert await trouble_of(late.open()) == "busy"
    assert b"OK" in server.ask("SCRIPT", "KILL")
    await blocked
    assert isinstance((await queue.submit([job("c")]))[0], Receipt)
    assert seen == {"busy"}
    await late.close()


async def test_too_many_clients(server: RedisServer, queue: RedisQueue) -> None:
    """A server that takes no more connections is busy for whoever comes too late, and serves those it has."""
    await queue.submit([job("a")])
    server.ask("CONFIG", "SET", "maxclients", 1)
    late = RedisQueue(server.url)
    assert await trouble_of(late.open()) in ("busy", "unreachable")
    assert await trouble_of(queue.wait([INGRESS], 0.1)) in ("busy", "unreachable")
    assert await queue.view("a") is not None
    await queue.close()
    await insist(late.open)
    await late.close()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """For localhost, signed by itself; its key is beside it."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    try:
        subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost", *files], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl that makes certificates")
    return tmp_path / "cert.pem"


async def test_tls(certificate: Path, tmp_path: Path) -> None:
    """With TLS all works, blocked reads too; a server that cannot prove its name is not used."""
    (port,) = free_ports(1)
    keys = ("--tls-cert-file", str(certificate), "--tls-key-file", str(tmp_path / "key.pem"))
    options = ("--tls-port", str(port), *keys, "--tls-auth-clients", "no", "--tls-ca-cert-file", str(certificate))
    server = RedisServer(binary_of("redis7"), tmp_path, options)
    try:
        server.start()
        async with opened(f"rediss://localhost:{port}?ssl_ca_certs={certificate}", 5.0) as queue:
            (claim,) = await running(queue, "a")
            assert await queue.settle([Settlement("a", claim.token, "done", b"{}" * 100_000)]) == [OK]
            assert await queue.result("a") == b"{}" * 100_000
            assert await queue.wait([INGRESS], 0.01) is False
        stranger = RedisQueue(f"rediss://localhost:{port}")
        assert await trouble_of(stranger.open()) == "unreachable"
        await stranger.close()
    finally:
        end_all([server])


async def test_a_loading_server(server: RedisServer, queue: RedisQueue) -> None:
    """A server that reads its file is loading, for old and new connections, until it serves; nothing is gone."""
    (claim,) = await running(queue, "a")
    server.ask("EVAL", "for i=1,600 do redis.call('SET', 'x'..i, string.rep('y', 20000)) end", 0)
    server.ask("CONFIG", "SET", "rdbcompression", "no")
    server.ask("BGREWRITEAOF")
    wait_until(lambda: b"aof_rewrite_in_progress:0" in server.ask("INFO", "persistence"), "the rewrite")
    server.stop()
    server.options += ("--key-load-delay", "1000")  # µs; it looks at its clients every two megabytes
    server.start(wait=False)
    seen: set[str] = set()
    assert await insist(lambda: queue.append([Append("a", claim.token, 0, "x", 1)]), seen) == [OK]
    assert "loading" in seen and seen <= {"loading", "unreachable"}


async def test_a_failed_snapshot(server: RedisServer, queue: RedisQueue) -> None:
    """A server that could not write its snapshot takes nothing, for trouble of its disk, until it can."""
    (claim,) = await running(queue, "a")
    server.ask("CONFIG", "SET", "save", "3600 1000000")
    obstacle = server.folder / "dump.rdb"
    obstacle.mkdir()
    server.ask("BGSAVE")
    wait_until(lambda: b"rdb_last_bgsave_status:err" in server.ask("INFO", "persistence"), "the failure")
    assert await trouble_of(queue.submit([job("b")])) == "disk"
    assert await trouble_of(queue.settle([Settlement("a", claim.token, "done", b"{}")])) == "disk"
    obstacle.rmdir()
    server.ask("BGSAVE")
    assert await insist(lambda: queue.settle([Settlement("a", claim.token, "done", b"{}")])) == [OK]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], stderr=subprocess.DEVNULL
    )
    if not mounted:
        pytest.skip("a full disk needs the right to mount one")
    yield disk
    subprocess.check_call(["umount", str(disk)])


@pytest.mark.parametrize("kind", ["redis6", "redis7"])
async def test_a_full_disk(kind: str, small_disk: Path) -> None:
    """With appendfsync everysec a full disk refuses new jobs; every job accepted before is there when there is room."""
    options = ("--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0")
    server = RedisServer(binary_of(kind), small_disk, options)
    server.start()
    accepted: list[str] = []
    try:
        async with opened(server.url, 5.0) as queue:
            ballast = small_disk / "ballast"
            ballast.write_bytes(b"x" * 480_000)
            trouble = ""
            while not trouble:
                assert len(accepted) < 1000, "the disk never fills"
                id = f"j{len(accepted)}"
                try:
                    await queue.submit([Submission(id, b"x" * 4000, "d", 1)])
                    accepted.append(id)
                except QueueUnavailable as error:
                    trouble = error.trouble
            assert trouble == "disk"
            ballast.unlink()
            await insist(lambda: queue.submit([job("later")]))
            server.stop()
            server.start()
            for id in accepted:
                assert await queue.view(id) is not None
    finally:
        end_all([server])


async def test_permissions(server: RedisServer, queue: RedisQueue) -> None:
    """What the server's ACL denies at run time is trouble that passes; at the opening it is a refusal."""
    allowed = ("ACL", "SETUSER", "muse", "reset", "on", ">secret", "~*", "&*", "+@all")
    server.ask(*allowed)
    async with opened(server.url.replace("unix://", "unix://muse:secret@"), 5.0) as guest:
        (claim,) = await running(guest, "a")
        submitted = set()
        for taken in ("-evalsha", "-hset", "-zadd"):
            server.ask("ACL", "SETUSER", "muse", taken)
            assert await trouble_of(guest.submit([job(f"b{taken}")])) == "denied"
            server.ask(*allowed)
            submitted |= {answer.id for answer in await guest.submit([job(f"b{taken}")]) if isinstance(answer, Receipt)}
        assert {each.id for each in await guest.claim("h:1", "n", [Want(INGRESS, 9)], lease_ms=9000)} == submitted
        assert len(submitted) == 3
        server.ask("ACL", "DELUSER", "muse")
        assert await trouble_of(guest.append([Append("a", claim.token)])) == "denied"
        assert await trouble_of(guest.wait([INGRESS], 1)) == "denied"
        with pytest.raises(QueueRefused, match=r"redis\.url"):
            await guest.open()
        server.ask(*allowed)
        assert await guest.append([Append("a", claim.token)]) == [OK]


async def test_channels_denied(server: RedisServer) -> None:
    """A user without channels, as Redis 7 makes them, ends jobs all the same: what is published is a hint."""
    server.ask("ACL", "SETUSER", "muse", "reset", "on", ">secret", "~*", "resetchannels", "+@all")
    async with opened(server.url.replace("unix://", "unix://muse:secret@"), 5.0) as guest:
        (claim,) = await running(guest, "a")
        assert await guest.settle([Settlement("a", claim.token, "done", b"{}")]) == [OK]
        assert server.ask("EXISTS", "{metamuse}:counters", "{metamuse}:live") == b":0\r\n"


async def test_another_policy_after_a_restart(server: RedisServer, queue: RedisQueue) -> None:
    """A server that comes back with eviction is not used, and not a reason to exit, until it is set right."""
    (claim,) = await running(queue, "a")
    server.stop()
    right, server.options = server.options, (*server.options, "--maxmemory-policy", "allkeys-lru")
    server.start()
    assert await trouble_of(queue.append([Append("a", claim.token)])) == "policy"
    with pytest.raises(QueueRefused, match="noeviction"):
        await queue.open()
    server.stop()
    server.options = right
    server.start()
    assert await queue.append([Append("a", claim.token)]) == [OK]


async def test_keys_of_a_wrong_type(server: RedisServer, queue: RedisQueue) -> None:
    """A key that somebody else wrote is a fault of the queue, not of the connection; without it all goes on."""
    server.ask("SET", "{metamuse}:ingress", "mine")
    with pytest.raises(QueueFault):
        await queue.claim("h:1", "n1", [Want(INGRESS, 1)], lease_ms=1000)
    with pytest.raises(QueueFault):
        await queue.submit([job("a")])
    with pytest.raises(QueueFault):
        await queue.events("a", after="yesterday")
    server.ask("DEL", "{metamuse}:ingress")
    assert all(isinstance(answer, Receipt) for answer in await queue.submit([job("a"), job("b")]))
    assert [claim.id for claim in await queue.claim("h:1", "n2", [Want(INGRESS, 9)], lease_ms=1000)] == ["a", "b"]
