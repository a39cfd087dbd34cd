"""What the outbox does when Redis stumbles over one job's keys, or refuses for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from metamusesd.board import RedisTrouble
from metamusesd.dispatcher.outbox import Outbox
from metamusesd.errors import MetamusesdError, QueueError, QueueFault, QueueRefused, QueueUnavailable
from metamusesd.queues.base import Host, Requeue, Settlement, Verdict
from metamusesd.queues.memory import MemoryQueue
from metamusesd.wire import Finished, Frame, Token
from tests.unit.dispatcher.stage import Stage


class Stumbling(MemoryQueue):
    """Fails on the jobs named in `broken`, and altogether with the errors in `troubles`, one a call."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[str] = set()
        self.troubles: list[QueueError] = []
        self.calls: list[int] = []

    def _stumble(self, entries: Sequence[Any]) -> None:
        self.calls.append(len(entries))
        if self.troubles:
            raise self.troubles.pop(0)
        if self.broken & {entry.id for entry in entries}:
            raise QueueFault("WRONGTYPE")

    async def settle(self, ends: Sequence[Settlement]) -> list[Verdict]:
        self._stumble(ends)
        return await super().settle(ends)

    async def requeue(self, backs: Sequence[Requeue]) -> list[Verdict]:
        self._stumble(backs)
        return await super().requeue(backs)


async def test_one_broken_key_gives_up_one_entry() -> None:
    """A call for all fails on one job: the others are written one by one, that one is `lost` and is reported."""
    queue, given_up = Stumbling(), list[tuple[Any, MetamusesdError]]()
    outbox = Outbox(queue, lambda *_: None, lambda _: None, lambda *what: given_up.append(what))
    queue.broken.add("b")
    futures = [outbox.put(Settlement(id, "t:1", "done", b"{}")) for id in "abc"]
    writing = asyncio.get_running_loop().create_task(outbox.run())
    verdicts = await asyncio.wait_for(asyncio.gather(*futures), 5)
    assert verdicts == [Verdict.LOST] * 3  # nobody holds a and c here; what counts is that they were asked
    assert queue.calls == [3, 1, 1, 1]
    assert [(entry.id, error.code) for entry, error in given_up] == [("b", "queue_fault")]
    assert outbox.written.is_set()
    writing.cancel()
    await asyncio.wait([writing])


@pytest.mark.parametrize("trouble", [QueueUnavailable(), QueueRefused(), QueueError("anything")])
async def test_no_trouble_ends_the_loop(trouble: QueueError) -> None:
    """Whatever Redis says of itself, the entries are kept and written when it serves again."""
    queue, told = Stumbling(), list[QueueError | None]()
    outbox = Outbox(queue, lambda *_: None, told.append, lambda *_: None)
    queue.troubles.append(trouble)
    future = outbox.put(Requeue("a", "t:1", "drain"))
    assert not outbox.written.is_set()
    writing = asyncio.get_running_loop().create_task(outbox.run())
    await asyncio.wait_for(future, 5)
    assert queue.calls == [1, 1]
    async with asyncio.timeout(5):
        while told != [trouble, None]:
            await asyncio.sleep(0)
    writing.cancel()
    await asyncio.wait([writing])


async def test_one_broken_stream_stops_one_job(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text of one job cannot be written: that job is dropped, its neighbours' streams go on in the same moment."""
    worker = await stage.worker()
    broken, fine = await stage.submit(), await stage.submit()
    append = stage.queue.append

    async def stumble(pieces: Sequence[Any]) -> list[Verdict]:
        if any(piece.id == broken for piece in pieces):
            raise QueueFault("WRONGTYPE")
        return await append(pieces)

    monkeypatch.setattr(stage.queue, "append", stumble)
    one, two = await worker.orders(2)
    await worker.send(Frame.EVENTS, [Token(one.handle, "x", 1, True), Token(two.handle, "fine", 1, True)])
    assert await worker.cancels() == [one.handle]
    await worker.send(Frame.EVENTS, [Finished(two.handle, "stop")])
    assert (await stage.ended(fine)).content == "fine"
    assert stage.dispatcher.ledger.faults == 1
    assert stage.board.dispatcher.get("redis_trouble") == RedisTrouble.NONE


async def test_a_drain_waits_for_refusals(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken body is refused while Redis is away: the drain ends when that is written, not before."""
    stage.queue.away = True
    id = await stage.submit(b"{not json")
    async with asyncio.timeout(5):
        while stage.dispatcher.outbox.written.is_set():
            await asyncio.sleep(0)
    draining = asyncio.get_running_loop().create_task(stage.dispatcher.drain(5.0))
    await stage.dispatcher.pump.stopped.wait()
    assert not draining.done()
    stage.queue.away = False
    await asyncio.wait_for(draining, 5)
    assert (await stage.ended(id)).state == "failed"


async def test_a_drain_waits_for_questions(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who serves its tier was being asked when the drain began: it goes back at once, unburnt."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def hosts() -> list[Host]:
        asked.set()
        await answer.wait()
        return []

    monkeypatch.setattr(stage.queue, "hosts", hosts)
    id = await stage.submit(b'{"user_query":"x","tier":"medium"}')
    await asyncio.wait_for(asked.wait(), 5)
    draining = asyncio.get_running_loop().create_task(stage.dispatcher.drain(5.0))
    await stage.dispatcher.pump.stopped.wait()
    assert not draining.done()
    answer.set()
    await asyncio.wait_for(draining, 5)
    view = await stage.queue.view(id)
    assert view is not None
    assert (view.state, view.attempt, view.reason) == ("queued", 1, "drain")


def test_the_board_says_why(stage: Stage) -> None:
    """Each trouble of Redis has its word; a fault stands beside a Redis that answers, for a while."""
    ledger, board = stage.dispatcher.ledger, stage.board.dispatcher
    for name in ("loading", "memory", "read_only", "disk", "busy", "denied", "unreachable"):
        ledger.redis(QueueUnavailable(trouble=name))
        assert (board.get("redis_ok"), board.get("redis_trouble")) == (0, RedisTrouble[name.upper()])
    ledger.redis(QueueRefused())
    assert board.get("redis_trouble") == RedisTrouble.POLICY
    ledger.redis(None)
    assert (board.get("redis_ok"), board.get("redis_trouble")) == (1, RedisTrouble.NONE)
    ledger.redis(QueueFault())
    ledger.beat(0, 0, False, 0)
    assert (board.get("redis_ok"), board.get("redis_trouble"), board.get("faults")) == (1, RedisTrouble.FAULT, 1)
