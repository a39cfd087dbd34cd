"""The client against real queues: a small dispatcher of the test's own answers, dies and loses as told."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable

import pytest

from metamusesd.client import Client, SyncClient
from metamusesd.errors import IdConflict, JobCancelled, JobExpired, JobGone, QueueFull, QueueUnavailable, WaitTimeout
from metamusesd.job import InferenceRequest, Result, encode_result, parse_request
from metamusesd.queues.base import (
    INGRESS,
    Append,
    Claim,
    Fault,
    JobEvent,
    Limits,
    Queue,
    Requeue,
    Routed,
    Settlement,
    Want,
)
from metamusesd.queues.memory import MemoryQueue
from metamusesd.queues.redis_queue import RedisQueue
from tests.contract.redis_servers import RedisServer

LEASE_MS = 10_000
WIDE = Limits()


class Dispatcher:
    """Claims what is there when a test says so, and acts on it."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._claims = 0

    async def claim(self, count: int = 1) -> list[Claim]:
        """Wait for `count` jobs, route them to `fast`, hold them as running."""
        held: list[Claim] = []
        while len(held) < count:
            fresh = await self._take(INGRESS)
            routed = [Routed(claim.id, claim.token, ("fast",), b"{}") for claim in fresh]
            held += await self._take("fast", routed)
            if len(held) < count and not fresh:
                await self._queue.wait([INGRESS, "fast"], 1.0)
        return held

    async def _take(self, queue: str, routed: list[Routed] | None = None) -> list[Claim]:
        self._claims += 1
        nonce = f"n{self._claims}"
        return await self._queue.claim("test:1", nonce, [Want(queue, 1000)], routed or [], lease_ms=LEASE_MS)

    async def say(self, claim: Claim, text: str, offset: int = 0) -> None:
        await self._queue.append([Append(claim.id, claim.token, offset, text, 1)])

    async def lose(self, claim: Claim, *, crashed: bool) -> None:
        fault = Fault.CRASH if crashed else Fault.NONE
        await self._queue.requeue([Requeue(claim.id, claim.token, "worker_died", fault)])

    async def finish(self, *claims: Claim, content: str = "yes", state: str = "done") -> None:
        ends = [
            Settlement(c.id, c.token, state, encode_result(Result(request_id=c.id, state=state, content=content)))
            for c in claims
        ]
        await self._queue.settle(ends)


Make = Callable[..., Queue]


@pytest.fixture(params=["memory", "redis6", "redis7"])
def make_queue(request: pytest.FixtureRequest, server_of: Callable[[str], RedisServer]) -> Make:
    """A function: another connection to this test's own queue."""
    prefix = f"client-{uuid.uuid4().hex[:8]}"
    if request.param == "memory":
        shared: list[MemoryQueue] = []

        def memory(limits: Limits = WIDE) -> Queue:
            if not shared:
                shared.append(MemoryQueue(limits))
            return shared[0]

        return memory
    url = server_of(request.param).url
    return lambda limits=WIDE: RedisQueue(url, prefix, limits)


@pytest.fixture
async def client(make_queue: Make) -> AsyncIterator[Client]:
    async with Client(queue=make_queue()) as client:
        yield client


@pytest.fixture
async def dispatcher(make_queue: Make, client: Client) -> AsyncIterator[Dispatcher]:
    queue = make_queue()
    await queue.open()
    yield Dispatcher(queue)
    await queue.close()


def ask(**fields: object) -> InferenceRequest:
    return parse_request({"user_query": "What is a muse?", **fields})


async def drain(client: Client, id: str) -> list[JobEvent]:
    return [event async for event in client.stream(id)]


async def test_execute_returns_what_was_settled(client: Client, dispatcher: Dispatcher) -> None:
    """submit → claim → settle → result, with no polling in between."""
    call = asyncio.create_task(client.execute(ask()))
    (claim,) = await dispatcher.claim()
    await dispatcher.finish(claim, content="a goddess")
    result = await call
    assert (result.content, result.request_id) == ("a goddess", claim.id)


async def test_a_thousand_waits(client: Client, dispatcher: Dispatcher) -> None:
    """A thousand jobs wait over one mailbox, each gets its own result, and nothing is left behind."""
    calls = [asyncio.create_task(client.execute(ask(id=f"job-{n}"))) for n in range(1000)]
    claims = await dispatcher.claim(1000)
    assert [claim.id for claim in claims] == [f"job-{n}" for n in range(1000)]
    for claim in claims[::100]:
        await dispatcher.finish(claim)
    await dispatcher.finish(*claims)
    results = await asyncio.gather(*calls)
    assert [result.request_id for result in results] == [f"job-{n}" for n in range(1000)]
    assert client._inbox._watches == {}


async def test_stream_of_a_restarted_job(client: Client, dispatcher: Dispatcher) -> None:
    """Two restarts, one burnt and one not, each tell the reader to begin again; the last run's text is the content."""
    receipt = await client.submit(ask())
    reading = asyncio.create_task(drain(client, receipt.id))
    for crashed, text in ((True, "first try"), (False, "second")):
        (claim,) = await dispatcher.claim()
        await dispatcher.say(claim, text)
        await dispatcher.lose(claim, crashed=crashed)
    (claim,) = await dispatcher.claim()
    await dispatcher.say(claim, "third ")
    await dispatcher.say(claim, "time", 6)
    await dispatcher.finish(claim, content="third time")
    events = await reading
    kinds = [event.kind for event in events if event.kind != "queued"]
    run = ["started", "token", "restarted"]
    assert kinds == [*run, *run, "started", "token", "token", "done"]
    last = max(n for n, event in enumerate(events) if event.kind == "restarted")
    assert "".join(event.text for event in events[last:]) == "third time"


async def test_late_and_foreign_readers_see_the_same(client: Client, dispatcher: Dispatcher, make_queue: Make) -> None:
    """A stream opened after the end, and one of another client, bring the same events."""
    receipt = await client.submit(ask())
    async with Client(queue=make_queue()) as other:
        foreign = asyncio.create_task(drain(other, receipt.id))
        (claim,) = await dispatcher.claim()
        await dispatcher.say(claim, "héllo")
        await dispatcher.say(claim, " wörld", 5)
        await dispatcher.finish(claim, content="héllo wörld")
        seen = await foreign
        late = await drain(client, receipt.id)
        assert [(event.kind, event.text) for event in seen] == [(event.kind, event.text) for event in late]
        assert "".join(event.text for event in late) == "héllo wörld"
        assert (await client.wait(receipt.id)).content == (await other.wait(receipt.id)).content == "héllo wörld"


async def test_a_repeated_submit_gets_the_same_answer(client: Client, dispatcher: Dispatcher) -> None:
    """The same id submitted twice runs once, and both callers get its result, also after the end."""
    request = ask(id="same")
    calls = [asyncio.create_task(client.execute(request)) for _ in range(2)]
    claims = await dispatcher.claim()
    await dispatcher.finish(*claims)
    assert [(await call).request_id for call in calls] == ["same", "same"]
    assert (await client.execute(request)).request_id == "same"


async def test_an_idempotency_key_answers_under_the_first_id(client: Client, dispatcher: Dispatcher) -> None:
    """Two ids with one idempotency key are one job."""
    first = await client.submit(ask(id="first", idempotency_key="k"))
    call = asyncio.create_task(client.execute(ask(id="second", idempotency_key="k")))
    (claim,) = await dispatcher.claim()
    await dispatcher.finish(claim)
    assert (await call).request_id == first.id


async def test_conflicting_ids(client: Client) -> None:
    """The same id with another body is a typed conflict."""
    await client.submit(ask(id="same"))
    with pytest.raises(IdConflict):
        await client.submit(ask(id="same", user_query="Something else?"))


async def test_a_full_queue(make_queue: Make) -> None:
    """Over the bound a submit is refused, with the time after which to try again."""
    queue = make_queue(Limits(max_jobs=1))
    await queue.open()
    await queue.configure()
    async with Client(queue=queue) as client:
        await client.submit(ask())
        with pytest.raises(QueueFull) as caught:
            await client.execute(ask())
        assert caught.value.retry_after_s > 0
        assert client._inbox._watches == {}


async def test_cancel(client: Client, dispatcher: Dispatcher) -> None:
    """Cancel ends the waits for a job with JobCancelled; cancelling it again or an unknown job says how that stands."""
    call = asyncio.create_task(client.execute(ask(id="j")))
    await dispatcher.claim()
    assert (await client.status("j")).state == "running"
    assert await client.cancel("j") == "cancelled"
    with pytest.raises(JobCancelled):
        await call
    assert await client.cancel("j") == "cancelled"
    assert await client.cancel("nobody") == "gone"
    assert [event.kind for event in await drain(client, "j")][-1] == "cancelled"


async def test_expired(client: Client, dispatcher: Dispatcher) -> None:
    """A job that ends as expired raises JobExpired."""
    call = asyncio.create_task(client.execute(ask(deadline_ms=60_000)))
    (claim,) = await dispatcher.claim()
    await dispatcher.finish(claim, state="expired")
    with pytest.raises(JobExpired):
        await call


async def test_nobody_there(client: Client) -> None:
    """Unknown jobs are gone at once."""
    for call in (client.wait("nobody"), client.status("nobody"), drain(client, "nobody")):
        with pytest.raises(JobGone):
            await call


async def test_patience(client: Client) -> None:
    """A wait ends with its timeout when no daemon is there, and the job stays in the queue."""
    with pytest.raises(WaitTimeout):
        await client.execute(ask(id="j"), timeout_s=0.02)
    assert (await client.status("j")).state == "queued"


async def test_redis_restarts_under_a_wait(server_of: Callable[[str], RedisServer]) -> None:
    """Redis loses everything while a client waits: the job is submitted again and its caller never notices."""
    server = RedisServer(server_of("redis7").binary, server_of("redis7").folder / "second")
    server.folder.mkdir(exist_ok=True)
    server.start()
    try:
        async with Client(server.url, "restart") as client:
            call = asyncio.create_task(client.execute(ask(id="j")))
            queue = RedisQueue(server.url, "restart")
            await queue.open()
            dispatcher = Dispatcher(queue)
            await dispatcher.claim()
            server.stop()
            server.start()
            while True:
                try:
                    (claim,) = await dispatcher.claim()
                    break
                except QueueUnavailable:
                    await asyncio.sleep(0.01)
            await dispatcher.finish(claim)
            assert (await call).request_id == "j"
            await queue.close()
    finally:
        server.stop()


async def test_redis_restarts_under_a_stream(server_of: Callable[[str], RedisServer]) -> None:
    """The job of a reader is lost half way: it is submitted again, and the reader is told to begin again."""
    server = RedisServer(server_of("redis7").binary, server_of("redis7").folder / "third")
    server.folder.mkdir(exist_ok=True)
    server.start()
    queue = RedisQueue(server.url, "restart")
    try:
        async with Client(server.url, "restart") as client:
            await client.submit(ask(id="j"))
            reading = client.stream("j")
            await queue.open()
            dispatcher = Dispatcher(queue)
            (claim,) = await dispatcher.claim()
            await dispatcher.say(claim, "lost")
            assert [(await anext(reading)).kind for _ in range(2)] == ["started", "token"]
            server.stop()
            server.start()
            rest = asyncio.create_task(_rest(reading))
            while True:
                try:
                    (claim,) = await dispatcher.claim()
                    break
                except QueueUnavailable:
                    await asyncio.sleep(0.01)
            await dispatcher.say(claim, "found")
            await dispatcher.finish(claim, content="found")
            assert await rest == [("restarted", ""), ("started", ""), ("token", "found"), ("done", "")]
    finally:
        await queue.close()
        server.stop()


async def _rest(events: AsyncIterator[JobEvent]) -> list[tuple[str, str]]:
    return [(event.kind, event.text) async for event in events]


async def test_places_reach_the_reader(client: Client, make_queue: Make) -> None:
    """`position` says where a job stands; what the dispatcher pushes comes as `queued` events before its text."""
    queue = make_queue()
    await queue.open()
    await client.submit(ask(id="first", stream=False))
    await client.submit(ask(id="j"))
    assert (await client.position("j")).queue == INGRESS and (await client.position("j")).ahead == 1
    reading = asyncio.create_task(drain(client, "j"))
    claims = await queue.claim("test:1", "a", [Want(INGRESS, 9)], lease_ms=LEASE_MS)
    routed = [Routed(claim.id, claim.token, ("fast",), b"{}") for claim in claims]
    await queue.claim("test:1", "b", [Want("heavy", 1)], routed, lease_ms=LEASE_MS)
    while not await queue.push("fast"):
        await asyncio.sleep(0.01)
    dispatcher = Dispatcher(queue)
    claims = await dispatcher.claim(2)
    await dispatcher.say(claims[1], "text")
    await dispatcher.finish(*claims, content="text")
    events = await reading
    assert [event.kind for event in events] == ["queued", "started", "token", "done"]
    place = json.loads(events[0].data)
    assert (place["queue"], place["ahead"], place["start_p50_ms"]) == ("fast", 1, None)
    await queue.close()


def test_the_library_from_the_environment(server_of: Callable[[str], RedisServer]) -> None:
    """REDIS_URL and REDIS_QUEUE_PREFIX are all that a producer needs, asynchronous or not."""
    environ = {"REDIS_URL": server_of("redis7").url, "REDIS_QUEUE_PREFIX": "environment"}
    with SyncClient.from_env(environ=environ) as client:
        receipt = client.submit({"user_query": "What is a muse?", "id": "env"})
        assert client.status(receipt.id).state == "queued"
        assert client.cancel(receipt.id) == "cancelled"
        assert client.wait(receipt.id).state == "cancelled"
