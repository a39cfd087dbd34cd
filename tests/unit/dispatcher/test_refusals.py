"""A worker that has no room after all is believed, and its jobs' readers are left in peace."""

from __future__ import annotations

import asyncio

import pytest

from metamusesd.dispatcher import fleet
from metamusesd.wire import Finished, Frame, Refused, Token
from tests.unit.dispatcher.stage import PlayedWorker, Stage


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second chance by the clock."""
    monkeypatch.setattr(fleet, "REFUSED_PAUSE_S", 3600.0)


async def refuse_second(stage: Stage) -> tuple[PlayedWorker, str, int]:
    """A worker that runs one job and has refused another: (worker, the refused job, the handle of the first)."""
    worker = await stage.worker(slots=4)
    await stage.submit()
    [first] = await worker.orders()
    refused = await stage.submit()
    [order] = await worker.orders()
    await worker.send(Frame.EVENTS, [Refused(order.handle)])
    await stage.state(refused, "ready")
    return worker, refused, first.handle


async def test_a_refusal_is_believed_until_a_job_ends(stage: Stage, patient: None) -> None:
    """No job of that class or a lower one is sent there until one of the worker's jobs has ended, unburnt."""
    worker, refused, handle = await refuse_second(stage)
    assert [want.floor for want in stage.dispatcher.fleet.wants()] == [2]
    high = await stage.submit(priority=2)
    assert [order.id for order in await worker.orders()] == [high]
    await worker.send(Frame.EVENTS, [Finished(handle, "stop")])
    [again] = await worker.orders()
    assert (again.id, again.attempt) == (refused, 1)


async def test_a_cancelled_job_ends_the_refusal_when_the_worker_says_so(stage: Stage, patient: None) -> None:
    """The place of a job that was cancelled here counts when the worker has let it go."""
    worker, refused, handle = await refuse_second(stage)
    [id] = [run.claim.id for run in stage.dispatcher.held if run.claim.id != refused]
    await stage.queue.cancel(id)
    stage.dispatcher.ask(0)
    assert await worker.cancels() == [handle]
    await worker.send(Frame.EVENTS, [Finished(handle, "cancelled")])
    assert [order.id for order in await worker.orders()] == [refused]


async def test_a_refusal_is_forgotten_after_a_while(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the reason was, it may pass without an end: the dispatcher tries again by the clock."""
    monkeypatch.setattr(fleet, "REFUSED_PAUSE_S", 0.01)
    worker, refused, _ = await refuse_second(stage)
    assert [order.id for order in await worker.orders()] == [refused]


async def test_a_refusal_is_not_heard_by_readers(stage: Stage, patient: None) -> None:
    """A run that has streamed nothing and does not count is given back in silence: one `started`, no `restarted`."""
    worker, refused, handle = await refuse_second(stage)
    await worker.send(Frame.EVENTS, [Finished(handle, "stop")])
    [again] = await worker.orders()
    await worker.send(Frame.EVENTS, [Token(again.handle, "x", 1, True), Finished(again.handle, "stop")])
    await stage.ended(refused)
    assert await stage.kinds(refused) == [("started", 1), ("token", 1), ("done", 1)]


async def test_one_restarted_for_one_restart(stage: Stage, patient: None) -> None:
    """Its worker dies and the next one refuses it at first: the reader hears of one restart."""
    worker = await stage.worker()
    id = await stage.submit()
    [order] = await worker.orders()
    await worker.send(Frame.EVENTS, [Token(order.handle, "half", 1, True)])
    await stage.die(worker)
    other = await stage.worker(row=1)
    [again] = await other.orders()
    busy = await stage.submit()
    [second] = await other.orders()
    assert second.id == busy
    await other.send(Frame.EVENTS, [Refused(again.handle)])
    await stage.state(id, "ready")
    await other.send(Frame.EVENTS, [Finished(second.handle, "stop")])
    [last] = await other.orders()
    await other.send(Frame.EVENTS, [Token(last.handle, "whole", 1, True), Finished(last.handle, "stop")])
    assert (await stage.ended(id)).content == "whole"
    kinds = [kind for kind, _ in await stage.kinds(id)]
    assert kinds == ["started", "token", "restarted", "started", "token", "done"]


async def test_an_idle_worker_that_refuses_ends_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting cannot help a job that an empty worker refuses: after three attempts it fails, and the next one runs."""
    monkeypatch.setattr(fleet, "REFUSED_PAUSE_S", 0.01)
    worker = await stage.worker()
    id = await stage.submit()
    for attempt in (1, 2, 3):
        [order] = await worker.orders()
        assert order.attempt == attempt
        await worker.send(Frame.EVENTS, [Refused(order.handle)])
    error = (await stage.ended(id)).error
    assert error is not None and error["code"] == "no_capacity"
    other = await stage.submit()
    assert [order.id for order in await worker.orders()] == [other]


async def test_a_question_about_a_job_without_a_stream(stage: Stage) -> None:
    """Nothing of such a job's text is in Redis: asking for the verdict does not lose it."""
    worker = await stage.worker()
    id = await stage.submit(stream=False)
    [order] = await worker.orders()
    await worker.send(Frame.EVENTS, [Token(order.handle, "yes", 1, True)])
    async with asyncio.timeout(5):
        while not next(iter(stage.dispatcher.held)).chars:
            await asyncio.sleep(0)
    stage.dispatcher.ask(0)
    answered = asyncio.Event()
    append = stage.queue.append

    async def seen(pieces: object) -> object:
        answers = await append(pieces)
        answered.set()
        return answers

    stage.queue.append = seen  # type: ignore[method-assign,assignment]
    await asyncio.wait_for(answered.wait(), 5)
    await worker.send(Frame.EVENTS, [Finished(order.handle, "stop")])
    assert (await stage.ended(id)).content == "yes"


async def test_a_bug_in_the_analysis_ends_one_job(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job on which our own code fails is failed, typed, and the claims go on."""
    monkeypatch.setattr("metamusesd.dispatcher.dispatcher.route", lambda *_: 1 // 0)
    result = await stage.ended(await stage.submit())
    assert result.error is not None and result.error["code"] == "internal_error"
    monkeypatch.undo()
    worker = await stage.worker()
    id = await stage.submit()
    assert [order.id for order in await worker.orders()] == [id]


async def test_text_of_a_settled_job_is_not_kept(stage: Stage) -> None:
    """Redis takes ends but no text (its memory is full): what was not written is dropped with its job."""
    worker = await stage.worker()
    stage.queue.full = True
    ids = [await stage.submit() for _ in range(3)]
    for order in await worker.orders(3):
        await worker.send(Frame.EVENTS, [Token(order.handle, "text", 1, True), Finished(order.handle, "stop")])
    for id in ids:
        assert (await stage.ended(id)).content == "text"
    await asyncio.wait_for(stage.dispatcher.emptied.wait(), 5)
    assert stage.dispatcher.outbox.pending == 0


async def test_crashes_and_neighbours(stage: Stage) -> None:
    """A poison with a neighbour, two crashes: then each runs alone; the poison dies alone, the neighbour lives."""
    poison, neighbour = await stage.submit(), await stage.submit()
    for _ in range(2):
        worker = await stage.worker()
        assert [order.id for order in await worker.orders(2)] == [poison, neighbour]
        await stage.die(worker)
    worker = await stage.worker()
    [order] = await worker.orders()
    assert order.id == poison
    assert stage.dispatcher.fleet.wants() == []
    await stage.die(worker)
    assert (await stage.ended(poison)).state == "dead"
    worker = await stage.worker()
    [order] = await worker.orders()
    assert (order.id, order.attempt) == (neighbour, 3)
    await worker.send(Frame.EVENTS, [Finished(order.handle, "stop")])
    assert (await stage.ended(neighbour)).state == "done"
