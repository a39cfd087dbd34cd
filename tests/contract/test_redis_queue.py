"""What only the real queue can show: lost connections, restarts, full memory, refused servers, cancelled waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metamusesd.errors import ConfigError, QueueRefused, QueueUnavailable
from metamusesd.queues.base import (
    INGRESS,
    Append,
    Fault,
    Host,
    Receipt,
    Requeue,
    Settlement,
    Submission,
    Verdict,
    Want,
)
from metamusesd.queues.redis_address import parse_address
from metamusesd.queues.redis_door import RedisDoor
from metamusesd.queues.redis_queue import RedisQueue
from tests.contract.redis_servers import RedisServer

OK = Verdict.OK


@pytest.fixture
async def queue(server: RedisServer) -> AsyncIterator[RedisQueue]:
    queue = RedisQueue(server.url, timeout_s=5.0)
    await queue.open()
    yield queue
    await queue.close()


@pytest.fixture
async def door(server: RedisServer) -> AsyncIterator[RedisDoor]:
    door = RedisDoor(server.url, "{metamuse}", 5.0)
    yield door
    door.close()


def job(id: str, body: bytes = b"{}", **fields: object) -> Submission:
    return Submission(id, body, "d", 1, **fields)  # type: ignore[arg-type]


async def test_script_flush(queue: RedisQueue, door: RedisDoor) -> None:
    """A server that has forgotten the scripts gets them again with the next call."""
    await door.ask("SCRIPT", "FLUSH")
    assert [answer.id for answer in await queue.submit([job("a")])] == ["a"]  # type: ignore[union-attr]
    await door.ask("SCRIPT", "FLUSH")
    assert await queue.cancel("a") == "cancelled"


async def test_text_stays_before_its_end_when_scripts_were_flushed(queue: RedisQueue, door: RedisDoor) -> None:
    """A settle whose script is there again does not overtake the text that it ends: append's script comes first."""
    await queue.submit([job("a"), job("b")])
    one, other = await queue.claim("h:1", "n", [Want(INGRESS, 2)], lease_ms=1000)
    await door.ask("SCRIPT", "FLUSH")
    assert await queue.settle([Settlement(one.id, one.token, "done", b"{}")]) == [OK]
    text, end = Append(other.id, other.token, 0, "hello", 1), Settlement(other.id, other.token, "done", b"{}")
    assert await asyncio.gather(queue.append([text]), queue.settle([end])) == [[OK], [OK]]
    assert [event.text for event in await queue.events(other.id, "0", block_ms=1) if event.text] == ["hello"]


async def test_a_killed_connection(queue: RedisQueue, door: RedisDoor) -> None:
    """Calls of many tasks go on over a new connection when the old one was killed."""
    await queue.submit([job(f"j{n}") for n in range(5)])
    for n in range(5):
        calls = [asyncio.ensure_future(queue.submit([job(f"k{n}-{m}")])) for m in range(20)]
        await door.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert all(isinstance(answers[0], Receipt) for answers in await asyncio.gather(*calls))
    assert len(await queue.claim("h:1", "n", [Want(INGRESS, 200)], lease_ms=1000)) == 105


async def test_a_restarted_server(queue: RedisQueue, server: RedisServer) -> None:
    """While the server is away every call says so at once; when it is back, all goes on."""
    await queue.submit([job("a")])
    (claim,) = await queue.claim("h:1", "n", [Want(INGRESS, 1)], lease_ms=1000)
    assert await queue.events("a", "0", block_ms=1) == []
    server.stop()
    for call in (queue.submit([job("b")]), queue.wait([INGRESS], 1.0), queue.events("a", block_ms=1000), queue.open()):
        with pytest.raises(QueueUnavailable):
            await call
    server.start()
    assert await queue.append([Append("a", claim.token)]) == [OK]
    assert await queue.events("a", "0", block_ms=1) == []
    assert await queue.settle([Settlement("a", claim.token, "done", b"{}")]) == [OK]


async def test_a_wait_ends_when_the_server_dies(queue: RedisQueue, server: RedisServer) -> None:
    """A blocked read is not left hanging by a death."""
    waiting = asyncio.ensure_future(queue.wait([INGRESS], 3600))
    reading = asyncio.ensure_future(queue.events("a", block_ms=3_600_000))
    await queue.view("a")
    server.stop()
    for blocked in (waiting, reading):
        with pytest.raises(QueueUnavailable):
            await blocked


async def test_a_cancelled_wait(queue: RedisQueue) -> None:
    """A wait that was cancelled leaves nothing behind that the next one could trip over."""
    for _ in range(40):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.005):
                await queue.wait([INGRESS], 30)
    waiting = asyncio.ensure_future(queue.wait(["fast"], 30))
    await queue.submit([job("a")])
    (claim,) = await queue.claim("h:1", "n", [Want(INGRESS, 1)], lease_ms=1000)
    await queue.requeue([Requeue("a", claim.token, "x", reroute=True)])
    assert await queue.wait([INGRESS], 30)
    waiting.cancel()


async def test_more_blocked_readers_than_links(queue: RedisQueue) -> None:
    """Hot calls do not queue behind blocked reads, and more blocked reads than links take turns."""
    readers = [asyncio.ensure_future(queue.events(f"j{n}", block_ms=20)) for n in range(40)]
    assert await queue.view("a") is None
    assert await asyncio.gather(*readers) == [[]] * 40


async def test_a_server_that_never_answers(tmp_path: Path) -> None:
    """A connection that takes commands and gives no reply is given up after the time-out."""
    held: list[asyncio.StreamWriter] = []
    mute = await asyncio.start_unix_server(lambda _, writer: held.append(writer), tmp_path / "mute.sock")
    queue = RedisQueue(f"unix://{tmp_path}/mute.sock", timeout_s=0.1)
    with pytest.raises(QueueUnavailable, match="no answer within"):
        await queue.view("a")
    with pytest.raises(QueueUnavailable, match="no answer within"):
        await queue.wait([INGRESS], 0.05)
    await queue.close()
    for writer in held:
        writer.close()
    mute.close()


async def test_a_server_that_talks_nonsense(tmp_path: Path) -> None:
    """Garbage from the server is a queue that cannot be reached."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    web = await asyncio.start_unix_server(babble, tmp_path / "web.sock")
    queue = RedisQueue(f"unix://{tmp_path}/web.sock", timeout_s=5)
    with pytest.raises(QueueUnavailable):
        await queue.view("a")
    await queue.close()
    web.close()


async def test_eviction_is_refused(queue: RedisQueue, door: RedisDoor) -> None:
    """A server that may evict keys is refused, with the remedy."""
    await door.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(QueueRefused, match="noeviction"):
        await queue.open()


async def test_a_password(queue: RedisQueue, door: RedisDoor, server: RedisServer) -> None:
    """Without the password the server is refused; with it, in the URL, it opens."""
    await door.ask("CONFIG", "SET", "requirepass", "s3cret/:@")
    stranger = RedisQueue(server.url)
    with pytest.raises(QueueRefused, match=r"redis\.url"):
        await stranger.open()
    wrong = RedisQueue(server.url.replace("unix://", "unix://:wrong@"))
    with pytest.raises(QueueRefused):
        await wrong.open()
    friend = RedisQueue(server.url.replace("unix://", "unix://:s3cret%2F%3A%40@") + "?db=3")
    await friend.open()
    assert "s3cret" not in repr(friend)
    for each in (stranger, wrong, friend):
        await each.close()


async def test_full_memory(queue: RedisQueue, door: RedisDoor) -> None:
    """With memory full a submit is refused; claimed jobs can be renewed, given back, cancelled, reaped and settled."""
    await queue.submit([job(f"j{n}", b"x" * 1000, reply_to="box") for n in range(6)])
    claims = await queue.claim("h:1", "n", [Want(INGRESS, 5)], lease_ms=60_000)
    await door.ask("CONFIG", "SET", "maxmemory", 1)
    with pytest.raises(QueueUnavailable, match="OOM"):
        await queue.submit([job("b")])
    a, b, c, d, e = claims
    assert await queue.renew([(a.id, a.token)], lease_ms=60_000) == [OK]
    assert await queue.settle([Settlement(a.id, a.token, "done", b"{}" * 100)]) == [OK]
    assert await queue.requeue([Requeue(b.id, b.token, "x"), Requeue(c.id, c.token, "x", delay_ms=1)]) == [OK, OK]
    assert await queue.cancel(d.id) == "cancelled"
    assert (await queue.reap("h:2", takeover=True)).requeued == (e.id,)
    assert [claim.id for claim in await queue.claim("h:2", "m", [Want(INGRESS, 1)], lease_ms=1000)] == [b.id]
    await door.ask("CONFIG", "SET", "maxmemory", 0)
    assert await queue.result(a.id) == b"{}" * 100


async def test_a_start_with_full_memory(queue: RedisQueue, server: RedisServer, door: RedisDoor) -> None:
    """A daemon that is started while memory is full of jobs opens the queue, publishes its limits and drains it."""
    await queue.submit([job("a"), job("b")])
    await door.ask("CONFIG", "SET", "maxmemory", 1)
    restarted = RedisQueue(server.url)
    await restarted.open()
    await restarted.configure()
    assert (await restarted.reap("h:2", takeover=True)).requeued == ()
    await restarted.announce(Host("h:2", {}), 5)
    for claim in await restarted.claim("h:2", "n", [Want(INGRESS, 2)], lease_ms=60_000):
        assert await restarted.settle([Settlement(claim.id, claim.token, "done", b"{}")]) == [OK]
    await restarted.close()
    await door.ask("CONFIG", "SET", "maxmemory", 0)
    assert await queue.result("b") == b"{}"


async def test_the_dead_are_capped(queue: RedisQueue, door: RedisDoor) -> None:
    """The list of the dead keeps its newest entries."""
    await door.ask(
        "EVAL", "for i=1,10005 do redis.call('ZADD', KEYS[1], ARGV[1], 'old'..i) end", 1, "{metamuse}:dead", 4e12
    )
    for n in range(3):
        await queue.submit([job("a")])
        (claim,) = await queue.claim("h:1", f"n{n}", [Want(INGRESS, 1)], lease_ms=1000)
        await queue.requeue([Requeue("a", claim.token, "x", Fault.CRASH_ALONE)])
    assert await door.ask("ZCARD", "{metamuse}:dead") == 10_000


async def test_ids_without_a_body(queue: RedisQueue, door: RedisDoor) -> None:
    """Entries whose job hash was deleted from outside are cleared away by claim and reap, and stop nothing."""
    await queue.submit([job("a", deadline_ms=60_000), job("b"), job("c")])
    await queue.claim("h:1", "n", [Want(INGRESS, 2)], lease_ms=60_000)
    await queue.submit([job("d"), job("e")])
    await door.ask("DEL", "{metamuse}:job:a", "{metamuse}:job:b", "{metamuse}:job:c")
    assert [claim.id for claim in await queue.claim("h:1", "m", [Want(INGRESS, 1)], lease_ms=60_000)] == ["d"]
    await queue.reap("h:2", takeover=True)
    assert (
        await door.ask("ZRANGE", "{metamuse}:leases", 0, -1) == [b"d"]
        or await door.ask("ZCARD", "{metamuse}:leases") == 0
    )


@pytest.mark.parametrize("url", ["http://x", "redis://h:port", "localhost:6379", "redis://h/abc"])
def test_a_bad_url(url: str) -> None:
    """A URL that leads to no Redis is a configuration error with a remedy."""
    with pytest.raises(ConfigError, match=r"redis\.url"):
        parse_address(url)


def test_urls() -> None:
    """Host, port, database, user and password come from the URL; the password is not in the repr."""
    address = parse_address("rediss://u:p%40@h:1234/5")
    assert (address.host, address.port, address.db, address.username, address.password) == ("h", 1234, 5, "u", "p@")
    assert address.tls is not None and "p@" not in repr(address)
    assert parse_address("unix:///run/r.sock").path == "/run/r.sock"
    assert (parse_address("redis://").host, parse_address("redis://").port) == ("localhost", 6379)


async def test_another_form_of_the_keys_is_refused(server: RedisServer, door: RedisDoor) -> None:
    """A queue that was written by another protocol is left alone, with a clear word."""
    await door.ask("SET", "{metamuse}:protocol", "0")
    stranger = RedisQueue(server.url)
    with pytest.raises(QueueRefused, match="protocol 0"):
        await stranger.open()
    await stranger.close()


async def test_an_argument_that_cannot_be_packed_owes_no_reply(queue: RedisQueue, door: RedisDoor) -> None:
    """A broken argument is the caller's own error; later replies still find their callers."""
    await door.ask("SET", "x", "1")
    with pytest.raises(UnicodeEncodeError):
        await door.ask("GET", "\ud800")
    assert await door.ask("GET", "x") == b"1"
    assert await door.ask("ECHO", "y") == b"y"
