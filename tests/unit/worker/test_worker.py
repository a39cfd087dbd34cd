"""The step loop with the echo engine over real sockets: epochs, cancel, deadlines, garbage, EOF, a slow reader."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from metamusesd import control
from metamusesd.board import Board, WorkerState
from metamusesd.engines.base import EngineSpec
from metamusesd.engines.echo import EchoEngine
from metamusesd.errors import EngineFailed
from metamusesd.log import get_logger
from metamusesd.wire import Finished, Frame, FrameReader, Generate, Hello, Refused, Token, encode
from metamusesd.worker import pipe
from metamusesd.worker.row import Row
from metamusesd.worker.worker import Worker

PATIENCE_S = 10.0


class Far:
    """The dispatcher's end of one pipe."""

    def __init__(self, sock: socket.socket, epoch: int) -> None:
        self.sock, self.epoch = sock, epoch
        sock.settimeout(PATIENCE_S)
        self._reader = FrameReader(epoch)
        self._frames: list[tuple[Frame, Any]] = []

    def send(self, frame: Frame, payload: Any) -> None:
        self.sock.sendall(encode(frame, self.epoch, payload))

    def generate(self, *queries: str, **more: Any) -> None:
        """Handles count from 1 in this call, or from `handle`."""
        first = more.pop("handle", 1)
        orders = [
            Generate(first + place, more.pop("priority", 1), b'{"user_query":"%s"}' % query.encode(), **more)
            for place, query in enumerate(queries)
        ]
        self.send(Frame.GENERATE, orders)

    def frame(self) -> tuple[Frame, Any]:
        while not self._frames:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)

    def until_end(self, *handles: int) -> dict[int, list[Any]]:
        """All events until each of the handles has its last one."""
        found: dict[int, list[Any]] = {handle: [] for handle in handles}
        open_ = set(handles)
        while open_:
            frame, events = self.frame()
            assert frame is Frame.EVENTS
            for event in events:
                found[event.handle].append(event)
                if not isinstance(event, Token):
                    open_.discard(event.handle)
        return found


class House:
    """A worker on a thread, and the supervisor's part."""

    def __init__(self, engine: EchoEngine) -> None:
        self.engine, self.board = engine, Board(1)
        self.channel, theirs = control.pair()
        self.channel.settimeout(PATIENCE_S)
        self._theirs, self._epochs, self._fars = theirs, itertools.count(1), list[Far]()
        info = engine.info
        hello = Hello("fast-0", "fast", info.name, info.digest, "echo", info.context, info.slots, info.reserve_slots)
        self.worker = Worker(engine, theirs, lambda: hello, Row(self.board.workers[0]), get_logger("test"))
        self.thread = threading.Thread(target=self.worker.run)
        self.thread.start()

    def link(self) -> Far:
        """A new epoch, greeted."""
        far = self.link_silently()
        frame, hello = far.frame()
        assert (frame, hello.worker) == (Frame.HELLO, "fast-0")
        return far

    def link_silently(self) -> Far:
        near, far_end = socket.socketpair()
        far = Far(far_end, next(self._epochs))
        self._fars.append(far)
        with near:
            control.send(self.channel, {"do": "link", "row": 0, "epoch": far.epoch}, near.fileno())
        return far

    def field(self, name: str) -> int:
        return self.board.workers[0].get(name)

    def shows(self, name: str, value: int) -> None:
        """Wait until the board says so."""
        deadline = time.monotonic() + PATIENCE_S
        while self.field(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.field(name)}, not {value}"
            time.sleep(0.001)

    def close(self) -> None:
        self.worker.leave()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        self.worker.close()
        for each in (self.channel, self._theirs, *(far.sock for far in self._fars)):
            each.close()


def make_house(**values: Any) -> House:
    return House(EchoEngine(EngineSpec("echo", "echo", **values)))


@pytest.fixture
def house() -> Iterator[House]:
    made = make_house(slots=4)
    yield made
    made.close()


def text_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


def test_generates(house: House) -> None:
    """HELLO first; then every ordered sequence speaks and ends once, all of a step in one frame."""
    far = house.link()
    far.generate("one two", "three four five")
    found = far.until_end(1, 2)
    assert [text_of(found[handle]) for handle in (1, 2)] == ["one two", "three four five"]
    assert [found[handle][-1].reason for handle in (1, 2)] == ["stop", "stop"]
    house.shows("jobs", 2)
    house.shows("frames_received", 1)
    house.shows("state", WorkerState.IDLE)


def test_a_broken_body_ends_alone(house: House) -> None:
    """A body that cannot be parsed is that handle's typed error and nobody else's."""
    far = house.link()
    orders = [Generate(1, 1, b"{garbage"), Generate(2, 1, b'{"user_query":"fine"}')]
    far.send(Frame.GENERATE, orders)
    found = far.until_end(1, 2)
    assert found[1][0].error["code"] == "invalid_request"
    assert text_of(found[2]) == "fine"


def test_prepares_beside_the_steps(house: House) -> None:
    """A slow prepare of one job does not stall another's tokens."""
    far = house.link()
    far.generate("a !tokens=200 !delay=1ms")
    far.frame()
    far.generate("b !prepare=50ms", "c", handle=2)
    found = far.until_end(1, 2, 3)
    assert [text_of(found[handle]) for handle in (2, 3)] == ["b", "c"]
    assert len(found[1]) >= 199


def test_refuses_over_its_room(house: House) -> None:
    """No slot: Refused, and the others go on."""
    far = house.link()
    far.generate(*["x !tokens=50 !delay=1ms"] * 4, "y")
    found = far.until_end(1, 2, 3, 4, 5)
    assert isinstance(found[5][0], Refused)
    assert all(found[handle][-1].reason == "stop" for handle in (1, 2, 3, 4))


@pytest.mark.parametrize("query", ["x !tokens=400 !delay=1ms", "x !prefill=60s", "x !prepare=100ms !tokens=400"])
def test_cancels_in_every_phase(house: House, query: str) -> None:
    """Decode, prefill, preparing: a cancel ends the sequence within a step, and it says nothing more."""
    far = house.link()
    far.generate("keep !tokens=200 !delay=1ms")
    far.frame()
    far.generate(query, handle=2)
    far.send(Frame.CANCEL, [2])
    found = far.until_end(1, 2)
    assert found[2][-1].reason == "cancelled"
    assert found[1][-1].reason == "stop"
    house.shows("slots_used", 0)


def test_a_cancelled_job_is_present_until_its_preparation_is_over(house: House) -> None:
    """The thread that prepares may still crash the worker: `cancelled` is said when it cannot any more."""
    far = house.link()
    far.generate("x !tokens=100000 !delay=1ms")
    far.frame()
    started, go_on = threading.Event(), threading.Event()
    real = house.engine.prepare

    def prepare(task: Any) -> Any:
        started.set()
        assert go_on.wait(PATIENCE_S)
        return real(task)

    house.engine.prepare = prepare  # type: ignore[method-assign]
    far.generate("in the middle of it", handle=2)
    assert started.wait(PATIENCE_S)
    far.generate("behind it", handle=3)
    far.send(Frame.CANCEL, [2, 3])
    frames = house.field("frames_received")
    house.shows("frames_received", max(frames, 4))
    house.engine.prepare = real  # type: ignore[method-assign]
    seen = [event.handle for _ in range(10) for event in far.frame()[1]]
    assert set(seen) == {1}
    go_on.set()
    events: list[Any] = []
    while len(events) < 2:
        events += [event for event in far.frame()[1] if event.handle != 1]
    assert [(event.handle, event.reason) for event in events] == [(2, "cancelled"), (3, "cancelled")]


def test_a_cancelled_job_is_not_prepared(house: House) -> None:
    """What was cancelled while it waited for the thread that prepares is passed by, whatever it would have done."""
    far = house.link()
    far.generate("x !tokens=100000 !delay=1ms")
    far.frame()
    far.generate("y !prepare=30ms", "z !prepare-crash", handle=2)
    far.send(Frame.CANCEL, [3])
    events: list[Any] = []
    while not any(event.handle == 3 for event in events):
        events += far.frame()[1]
    assert [event.reason for event in events if event.handle == 3] == ["cancelled"]


def test_cancels_what_is_pre_empted() -> None:
    """A low job that yields its step to high ones is gone within a step of its cancel."""
    house = make_house(slots=1, reserve_slots=2)
    try:
        far = house.link()
        far.generate("low !tokens=100000 !delay=1ms", priority=0)
        far.frame()
        far.generate("high !tokens=100000 !delay=1ms", handle=2, priority=2)
        house.shows("preempted", 1)
        far.send(Frame.CANCEL, [1])
        house.shows("preempted", 0)
        far.send(Frame.CANCEL, [2])
        assert [events[-1].reason for events in far.until_end(1, 2).values()] == ["cancelled", "cancelled"]
        house.shows("slots_used", 0)
    finally:
        house.close()


def test_a_deadline_ends_what_is_pre_empted() -> None:
    """A sequence that gets no steps is past its deadline all the same."""
    house = make_house(slots=1, reserve_slots=2)
    try:
        far = house.link()
        far.generate("low !tokens=100000 !delay=1ms", priority=0, deadline_in_ms=300)
        far.frame()
        far.generate("high !tokens=100000 !delay=1ms", handle=2, priority=2)
        house.shows("preempted", 1)
        house.shows("preempted", 0)
        far.send(Frame.CANCEL, [2])
        assert [events[-1].reason for events in far.until_end(1, 2).values()] == ["deadline", "cancelled"]
    finally:
        house.close()


def test_a_deadline_ends_a_sequence(house: House) -> None:
    """Past its deadline a sequence ends with `deadline`, also while it is being prepared."""
    far = house.link()
    far.generate("x !tokens=100000 !delay=1ms", deadline_in_ms=20)
    assert far.until_end(1)[1][-1].reason == "deadline"
    far.generate("x !tokens=100 !delay=1ms", handle=2)
    far.generate("x !prepare=100ms", handle=3, deadline_in_ms=20)
    assert far.until_end(2, 3)[3][-1].reason == "deadline"


def test_a_new_link_drops_the_old_epoch(house: House) -> None:
    """Nothing of an older epoch is heard on a newer pipe, and its sequences hold no slot."""
    old = house.link()
    old.generate(*["x !tokens=100000 !delay=1ms"] * 4)
    old.frame()
    new = house.link()
    new.generate("fresh")
    assert text_of(new.until_end(1)[1]) == "fresh"
    with pytest.raises(EOFError):
        while True:
            old.frame()
    house.shows("epoch", 2)
    house.shows("slots_used", 0)


def test_eof_drops_everything_and_waits(house: House) -> None:
    """The dispatcher died: its sequences are dropped, the worker stays and takes the next link."""
    far = house.link()
    far.generate("x !tokens=100000 !delay=1ms")
    far.frame()
    far.sock.close()
    house.shows("slots_used", 0)
    again = house.link()
    again.generate("back")
    assert text_of(again.until_end(1)[1]) == "back"


@pytest.mark.parametrize("garbage", [b"\xff" * 40, encode(Frame.HELLO, 1, []), encode(Frame.GENERATE, 99, [])])
def test_garbage_closes_the_pipe_and_asks_for_another(house: House, garbage: bytes) -> None:
    """A broken frame ends the pipe; the supervisor hears `relink`; the next link works."""
    far = house.link()
    far.sock.sendall(garbage)
    with pytest.raises(EOFError):
        far.frame()
    received = control.receive(house.channel)
    assert received is not None
    assert received[0]["say"] == "relink"
    again = house.link()
    again.generate("works")
    assert text_of(again.until_end(1)[1]) == "works"


def test_half_a_frame_is_dropped(house: House) -> None:
    """A frame cut off by EOF never counts."""
    far = house.link()
    far.sock.sendall(encode(Frame.GENERATE, 1, [Generate(1, 1, b"{}")])[:-3])
    far.sock.close()
    again = house.link()
    again.generate("next")
    assert text_of(again.until_end(1)[1]) == "next"


def test_a_slow_reader_pauses_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that does not read bounds what is made for it; when it reads on, nothing is missing."""
    monkeypatch.setattr(pipe, "FULL_BYTES", 2000)
    house = make_house(slots=4, default_max_tokens=100_000, context=200_000)
    try:
        far = house.link_silently()
        far.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        words = 20_000
        far.generate(f"{'long' * 50} !tokens={words}")
        steps = -1
        while steps != house.field("steps") or not steps:
            steps = house.field("steps")
            time.sleep(0.05)
        assert steps < words
        assert far.frame()[0] is Frame.HELLO
        assert len(far.until_end(1)[1]) == words + 1
    finally:
        house.close()


def test_a_failed_step_ends_the_batch_with_its_error(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the engine cannot compute a batch, every sequence of it ends with the error; the worker lives."""
    real = house.engine.step
    failures = iter([EngineFailed("decode returned -1")])

    def step(*_: Any) -> Any:
        if house.engine.statistics().slots_used == 2 and (error := next(failures, None)):
            raise error
        return real()

    monkeypatch.setattr(house.engine, "step", step)
    far = house.link()
    far.generate("a !tokens=3", "b !tokens=3")
    found = far.until_end(1, 2)
    assert all(events[-1].error["code"] == "engine_failed" for events in found.values())
    far.generate("c", handle=1)
    assert text_of(far.until_end(1)[1]) == "c"


def test_who_leaves_refuses_what_it_holds(house: House) -> None:
    """Asked to leave, it gives every job back by name: what is still in a process that ends is to blame for it."""
    far = house.link()
    far.generate("x !tokens=100000 !delay=1ms", "y !tokens=100000")
    far.frame()
    house.worker.leave()
    found = far.until_end(1, 2)
    assert [(type(events[-1]), events[-1].reason) for events in found.values()] == [(Refused, "leaving")] * 2
    with pytest.raises(EOFError):
        far.frame()


def test_the_end_of_the_control_socket_ends_the_worker() -> None:
    """The supervisor is gone: so is the worker."""
    house = make_house()
    house.channel.shutdown(socket.SHUT_RDWR)
    house.thread.join(PATIENCE_S)
    assert not house.thread.is_alive()
    house.close()


def test_finished_is_the_last_word(house: House) -> None:
    """No event of a handle follows its Finished."""
    far = house.link()
    far.generate(*["a b c"] * 3)
    for events in far.until_end(1, 2, 3).values():
        assert [isinstance(event, Finished) for event in events] == [False] * 3 + [True]


def test_a_stuck_prepare_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that cannot be prepared in time takes the process along, so that a fresh one can serve the others."""
    monkeypatch.setattr("metamusesd.worker.worker.PREPARE_LIMIT_S", 0.05)
    monkeypatch.setattr("metamusesd.worker.worker.IDLE_S", 0.02)
    house = make_house(slots=4)
    caught: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: caught.append(arguments.exc_value))
    far = house.link()
    far.generate("x !tokens=400 !delay=1ms")
    far.frame()
    far.generate("y !prepare=1s", handle=2)
    house.thread.join(PATIENCE_S)
    house.close()
    assert isinstance(caught[0], EngineFailed)
