"""The dispatcher on the memory queue, with a worker played by the test at the other end of a real pipe."""

from __future__ import annotations

import asyncio

import pytest

from metamusesd.dispatcher.run import Run
from metamusesd.job import Priority
from metamusesd.queues.base import Append, Claim, Verdict
from metamusesd.wire import Finished, Frame, Token
from tests.unit.dispatcher.stage import Stage


async def test_the_journey(stage: Stage) -> None:
    """A submitted job is routed, sent, streamed and settled."""
    worker = await stage.worker()
    id = await stage.submit()
    [order] = await worker.orders()
    assert (order.id, order.body, order.attempt) == (id, b'{"user_query":"hi"}', 1)
    await worker.send(Frame.EVENTS, [Token(order.handle, "Hé", 1, True)])
    await worker.send(Frame.EVENTS, [Token(order.handle, "llo", 1), Finished(order.handle, "stop", None, 2, 2)])
    result = await stage.ended(id)
    assert (result.state, result.content, result.worker, result.tier) == ("done", "Héllo", "fast-0", "fast")
    texts = await stage.texts(id)
    assert "".join(event.text for event in texts) == "Héllo"
    assert [event.offset for event in texts] == ([0, 2] if len(texts) == 2 else [0])


async def test_no_events_when_no_stream_is_wanted(stage: Stage) -> None:
    """`stream: false`: no token is written, the result has them all."""
    worker = await stage.worker()
    id = await stage.submit(stream=False)
    [order] = await worker.orders()
    await worker.send(Frame.EVENTS, [Token(order.handle, "yes", 1, True), Finished(order.handle, "stop")])
    assert (await stage.ended(id)).content == "yes"
    assert await stage.texts(id) == []


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"{not json", "invalid_request", "body"),
        (b'{"user_query":"x","params":{"seed":"y"}}', "invalid_request", "params.seed"),
        (b'{"user_query":"x","tier":"medium"}', "unknown_tier", "tier"),
        (b'{"user_query":"x","model":"gpt"}', "unknown_tier", "model"),
    ],
)
async def test_what_cannot_be_served_fails_typed(stage: Stage, body: bytes, code: str, field: str) -> None:
    """A raw or broken body ends as `failed` with field and remedy, and never reaches a worker."""
    result = await stage.ended(await stage.submit(body))
    assert result.error is not None
    assert (result.state, result.error["code"], result.error["field"]) == ("failed", code, field)
    assert result.error["remedy"]


async def test_waits_in_the_queue_for_a_place(stage: Stage) -> None:
    """Over the slots jobs stay in Redis; the head gets the next free place, highest class first."""
    worker = await stage.worker(slots=1)
    first = await stage.submit()
    [order] = await worker.orders()
    assert order.id == first
    low, high = await stage.submit(priority=0), await stage.submit(priority=2)
    await stage.state(high, "ready")
    await worker.send(Frame.EVENTS, [Finished(order.handle, "stop")])
    [order] = await worker.orders()
    assert order.id == high
    await worker.send(Frame.EVENTS, [Finished(order.handle, "stop")])
    [order] = await worker.orders()
    assert order.id == low


async def test_a_cancel_reaches_the_worker(stage: Stage) -> None:
    """The next verdict says cancelled: the worker is told, and the place is free."""
    worker = await stage.worker(slots=1)
    id = await stage.submit()
    [order] = await worker.orders()
    assert await stage.queue.cancel(id) == "cancelled"
    stage.dispatcher.ask(0)
    assert await worker.cancels() == [order.handle]
    other = await stage.submit()
    assert (await worker.orders())[0].id == other


async def test_a_token_brings_the_verdict_as_well(stage: Stage) -> None:
    """A running stream learns of its cancel by its own append."""
    worker = await stage.worker()
    id = await stage.submit()
    [order] = await worker.orders()
    await stage.queue.cancel(id)
    await worker.send(Frame.EVENTS, [Token(order.handle, "late", 1, True)])
    assert await worker.cancels() == [order.handle]


async def test_a_dead_worker_gives_its_jobs_to_another(stage: Stage) -> None:
    """EOF and `unlink`: the job runs elsewhere as attempt 2, and its text begins at offset 0."""
    worker = await stage.worker()
    id = await stage.submit()
    [order] = await worker.orders()
    await worker.send(Frame.EVENTS, [Token(order.handle, "half", 1, True)])
    other = await stage.worker(row=1)
    await worker.close()
    stage.unlink(worker, 0, -9)
    [again] = await other.orders()
    assert (again.id, again.attempt) == (id, 2)
    view = await stage.queue.view(id)
    assert view is not None
    assert view.crashes == 1
    await other.send(Frame.EVENTS, [Token(again.handle, "whole", 1, True), Finished(again.handle, "stop")])
    assert (await stage.ended(id)).content == "whole"


async def test_a_new_pipe_of_a_living_worker_is_no_crash(stage: Stage) -> None:
    """Garbage closed the pipe and the supervisor made another: nobody died, nothing counts."""
    worker = await stage.worker()
    id = await stage.submit()
    await worker.orders()
    await worker.close()
    fresh = await stage.worker()
    [again] = await fresh.orders()
    view = await stage.queue.view(id)
    assert view is not None
    assert (again.id, view.crashes, view.attempt) == (id, 0, 1)


async def test_garbage_from_a_worker_closes_its_pipe(stage: Stage) -> None:
    """A frame that cannot be read is the end of that pipe and of nothing else."""
    worker = await stage.worker()
    await stage.submit()
    [order] = await worker.orders()
    await asyncio.get_running_loop().sock_sendall(worker._sock, b"\xff" * 64)
    await asyncio.wait_for(asyncio.shield(worker._reading), 5)
    other = await stage.worker(row=1)
    stage.unlink(worker, 0, 0)
    assert (await other.orders())[0].id == order.id


async def test_a_retryable_error_burns_an_attempt(stage: Stage) -> None:
    """An engine's failure is tried again, as attempt 2."""
    worker = await stage.worker()
    await stage.submit()
    [order] = await worker.orders()
    await worker.send(Frame.EVENTS, [Finished(order.handle, error={"code": "engine_failed", "retryable": True})])
    assert (await worker.orders())[0].attempt == 2


async def test_what_is_late_is_not_sent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claimed in time, but its deadline passed before it could be sent: expired, and no worker hears of it."""
    worker = await stage.worker()
    monkeypatch.setattr(Run, "overdue", property(lambda run: bool(run.claim.deadline_ms)))
    late = await stage.submit(deadline_ms=60_000)
    assert (await stage.ended(late)).state == "expired"
    id = await stage.submit()
    assert [order.id for order in await worker.orders()] == [id]


@pytest.mark.parametrize(("left_ms", "overdue"), [(-1, True), (0, True), (1000, False)])
def test_overdue(left_ms: int, overdue: bool) -> None:
    """By the server's clock at the claim and our own since then."""
    loop = asyncio.new_event_loop()
    run = Run(Claim("j", "t:1", "fast", 1, 1, 0, b"{}", b"", "default", True, 0, 5000 + left_ms, 5000), loop)
    loop.close()
    assert run.overdue is overdue


async def test_a_drain_gives_back_what_does_not_finish(stage: Stage) -> None:
    """The drain's time is over: the rest goes back unburnt, and nothing more is claimed."""
    worker = await stage.worker()
    id = await stage.submit()
    await worker.orders()
    await stage.dispatcher.drain(0.0)
    view = await stage.queue.view(id)
    assert view is not None
    assert (view.state, view.attempt, view.crashes) == ("ready", 1, 0)
    await stage.submit()
    assert not stage.dispatcher.held


async def test_what_cannot_be_written_now_is_written_later(stage: Stage) -> None:
    """Redis away while tokens and an end arrive: all of it is there when it is back, in order."""
    worker = await stage.worker()
    id = await stage.submit()
    [order] = await worker.orders()
    stage.queue.away = True
    await worker.send(Frame.EVENTS, [Token(order.handle, "one", 1, True)])
    await worker.send(Frame.EVENTS, [Token(order.handle, " two", 1), Finished(order.handle, "stop")])
    async with asyncio.timeout(5):
        while stage.dispatcher.ledger.redis_ok or not stage.dispatcher.outbox.pending:
            await asyncio.sleep(0)
    stage.queue.away = False
    assert (await stage.ended(id)).content == "one two"
    assert "".join(event.text for event in await stage.texts(id)) == "one two"


async def test_a_stale_token_changes_nothing(stage: Stage) -> None:
    """Somebody with an old claim token gets `lost`."""
    worker = await stage.worker()
    id = await stage.submit(priority=Priority.HIGH)
    await worker.orders()
    assert await stage.queue.append([Append(id, "old:1", 0, "x", 1)]) == [Verdict.LOST]


OVERFLOW = {"code": "context_overflow", "retryable": False}


async def test_a_long_prompt_goes_to_a_larger_context(stage: Stage) -> None:
    """Too long for the tier that it was routed to: it runs on one with more context, unburnt."""
    small, large = await stage.worker(), await stage.worker(row=1, tier="heavy", context=32_768)
    id = await stage.submit()
    [order] = await small.orders()
    await small.send(Frame.EVENTS, [Finished(order.handle, error=OVERFLOW)])
    [again] = await large.orders()
    assert (again.id, again.attempt) == (id, 1)
    await large.send(Frame.EVENTS, [Finished(again.handle, error=OVERFLOW)])
    result = await stage.ended(id)
    assert result.error == OVERFLOW


async def test_a_forced_tier_is_not_left(stage: Stage) -> None:
    """The request names its tier: too long there is the typed error, whatever else there is."""
    small = await stage.worker()
    await stage.worker(row=1, tier="heavy", context=32_768)
    id = await stage.submit(b'{"user_query":"hi","tier":"fast"}')
    [order] = await small.orders()
    await small.send(Frame.EVENTS, [Finished(order.handle, error=OVERFLOW)])
    assert (await stage.ended(id)).state == "failed"


async def test_a_bug_at_the_end_ends_the_job(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that our own code cannot write: the job fails, typed, instead of running for ever."""
    monkeypatch.setattr("metamusesd.dispatcher.dispatcher.conclude", lambda *_, **__: 1 // 0)
    worker = await stage.worker()
    id = await stage.submit()
    [order] = await worker.orders()
    await worker.send(Frame.EVENTS, [Finished(order.handle, "stop")])
    error = (await stage.ended(id)).error
    assert error is not None and error["code"] == "internal_error"


async def test_a_journey_that_fails_holds_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours in the middle of a journey: the job is not held on to, so that its lease can run out."""
    await stage.worker()
    failed = asyncio.Event()

    def fail(_: object) -> None:
        failed.set()
        raise RuntimeError("a bug")

    monkeypatch.setattr(stage.dispatcher.scheduling, "place", fail)
    await stage.submit()
    await asyncio.wait_for(failed.wait(), 5)
    await asyncio.wait_for(stage.dispatcher.emptied.wait(), 5)
    assert not stage.dispatcher.held
