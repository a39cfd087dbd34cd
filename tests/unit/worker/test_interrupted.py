"""What a worker hears in the middle of a long step: its sequence's end and a higher class cut it short."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from metamusesd import control
from metamusesd.engines.base import EngineSpec, Event, Interrupted, Urgent, never, nobody
from metamusesd.engines.echo import EchoEngine
from metamusesd.job import Priority
from metamusesd.wire import Finished, Frame
from tests.unit.worker.test_worker import PATIENCE_S, House, text_of


class Slow(EchoEngine):
    """While it holds sequence 1, its steps last until that one is interrupted, or has to give way."""

    def __init__(self) -> None:
        super().__init__(EngineSpec("echo", "echo", slots=4))
        self.asked = self.gave_way = 0
        self.computing = threading.Event()

    def step(self, interrupted: Interrupted = never, urgent: Urgent = nobody) -> list[Event]:
        if 1 not in self._held or len(self._held) > 1:
            return super().step()
        self.computing.set()
        while not interrupted(1):
            if urgent(Priority.NORMAL):
                self.gave_way += 1
                break
            self.asked += 1
            time.sleep(0.001)
        return []

    def asks_again(self) -> None:
        """Wait until it has asked once more, and got a no."""
        deadline, before = time.monotonic() + PATIENCE_S, self.asked
        while self.asked < before + 2:
            assert time.monotonic() < deadline, "the step has ended"
            time.sleep(0.001)


@pytest.fixture
def slow() -> Iterator[House]:
    made = House(Slow())
    yield made
    made.close()


def engine_of(house: House) -> Slow:
    assert isinstance(house.engine, Slow)
    assert house.engine.computing.wait(PATIENCE_S)
    return house.engine


def test_a_cancel_is_heard_inside_a_step(slow: House) -> None:
    """The cancel of the sequence that is computed ends the step; all frames of that time are handled in their order."""
    far = slow.link()
    far.generate("long")
    engine = engine_of(slow)
    far.generate("two !tokens=100000", handle=2)
    far.send(Frame.CANCEL, [2, 7])
    far.generate("three", handle=3)
    engine.asks_again()
    assert slow.field("frames_received") == 1  # heard, and not looked at: nobody is to blame for a crash in this step
    far.send(Frame.CANCEL, [1])
    found = far.until_end(1, 2, 3)
    assert [found[handle][-1].reason for handle in (1, 2, 3)] == ["cancelled", "cancelled", "stop"]
    assert len(found[1]) == len(found[2]) == 1
    assert text_of(found[3]) == "three"
    slow.shows("frames_received", 5)


def test_a_deadline_ends_the_step(slow: House) -> None:
    """The deadline of the sequence that is computed passes in the middle of a step, and ends it."""
    far = slow.link()
    far.generate("long", deadline_in_ms=50)
    assert far.until_end(1)[1] == [Finished(1, "deadline")]
    slow.shows("slots_used", 0)


def test_a_place_is_seen_to_be_free_at_once(slow: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was heard inside a step is handled right after it, and the board says so before the worker rests."""
    far = slow.link()
    far.generate("long")
    engine_of(slow).asks_again()
    select, rests = slow.worker._selector.select, list[int]()

    def watched(limit_s: float) -> Any:
        if limit_s:
            rests.append(slow.field("slots_used"))
        return select(limit_s)

    monkeypatch.setattr(slow.worker._selector, "select", watched)
    far.send(Frame.CANCEL, [1])
    far.until_end(1)
    slow.shows("slots_used", 0)
    assert not any(rests)


@pytest.mark.parametrize("garbage", [b"", b"x" * 64])
def test_the_end_of_the_pipe_ends_the_step(slow: House, garbage: bytes) -> None:
    """EOF and garbage are heard inside a step: the worker drops everything, asks for a new pipe, and serves on."""
    far = slow.link()
    far.generate("long")
    engine = engine_of(slow)
    far.generate("lost", handle=2)
    engine.asks_again()
    far.sock.sendall(garbage)
    far.sock.close()
    message, _ = control.receive(slow.channel) or ({}, None)
    assert message == {"say": "relink", "epoch": far.epoch}
    slow.shows("slots_used", 0)
    other = slow.link()
    other.generate("fine", handle=3)
    assert text_of(other.until_end(3)[3]) == "fine"


def test_a_higher_class_ends_the_step(slow: House) -> None:
    """It is prepared at once, for nobody else waits; one of the same class waits for the end of the step."""
    far = slow.link()
    far.generate("long")
    engine = engine_of(slow)
    far.generate("same", handle=2)
    engine.asks_again()
    assert engine.gave_way == 0
    far.generate("urgent", handle=3, priority=3)
    found = far.until_end(1, 2, 3)
    assert [text_of(found[handle]) for handle in (1, 2, 3)] == ["long", "same", "urgent"]
    assert engine.gave_way == 1


def test_one_that_is_long_to_prepare_ends_it_when_it_is_ready(slow: House) -> None:
    """It ends one step when it is heard of, and the one that has begun meanwhile when it can be admitted."""
    far = slow.link()
    far.generate("long")
    engine, free = engine_of(slow), threading.Event()
    prepare = engine.prepare
    engine.prepare = lambda task: (free.wait(PATIENCE_S), prepare(task))[1]  # type: ignore[method-assign]
    far.generate("urgent " + 5000 * "x", handle=2, priority=3)
    slow.shows("frames_received", 2)
    engine.asks_again()
    assert engine.gave_way == 1
    free.set()
    found = far.until_end(1, 2)
    assert text_of(found[2]).startswith("urgent x") and text_of(found[1]) == "long"
    assert engine.gave_way >= 2


def test_one_that_is_raised_ends_the_step(slow: House) -> None:
    """A job that waits behind the step gets a higher class; one that was heard of and cancelled ends nothing."""
    far = slow.link()
    far.generate("long")
    engine = engine_of(slow)
    far.generate("gone", handle=2, priority=3)
    far.send(Frame.CANCEL, [2])
    engine.computing.clear()
    far.generate("same", handle=3)
    far.send(Frame.RAISE, [(3, 3), (9, 3)])
    found = far.until_end(1, 2, 3)
    assert [found[handle][-1].reason for handle in (1, 2, 3)] == ["stop", "cancelled", "stop"]
    assert engine.gave_way >= 1
