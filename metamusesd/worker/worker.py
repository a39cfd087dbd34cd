"""Stage 8 · worker · the step loop: take jobs in between steps, compute one batch, send one frame, again.

    control socket ─► a link (fd, epoch): drop the old epoch's sequences, then HELLO
    pipe           ─► GENERATE: prepare ─► admit · CANCEL: drop · RAISE    while busy: looked at, never waited for
    engine.step()  ─► one EVENTS frame for all sequences · the board row    a long one asks whether it is still wanted,
                                                                            and whether a higher class waits

One thread does all of this; only `prepare` may run beside it (see preparing.py). The loop ends when the control socket
does, or on SIGTERM: the dispatcher has drained before, so there is nothing to save.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from metamusesd import control
from metamusesd.engines.base import Engine
from metamusesd.errors import EngineFailed, MetamusesdError, NoCapacity, WireError
from metamusesd.job import Priority
from metamusesd.log import Logger, tick
from metamusesd.wire import Event, Finished, Frame, Generate, Hello, Refused
from metamusesd.worker.pipe import Pipe
from metamusesd.worker.preparing import Made, Preparing
from metamusesd.worker.row import Row

IDLE_S = 1.0
PREPARE_LIMIT_S = 60.0  # then the thread is stuck, and only a new process helps


class Worker:
    """One engine, one pipe at a time. `run` returns when the worker shall leave."""

    def __init__(
        self, engine: Engine, channel: socket.socket, hello: Callable[[], Hello], row: Row, log: Logger
    ) -> None:
        self._engine, self._control, self._hello, self._row, self._log = engine, channel, hello, row, log
        self._preparing = Preparing(engine, self._wanted)
        self._pipe: Pipe | None = None
        self._held: dict[int, int] = {}  # handle → deadline (monotonic ns, 0: none), preparing or admitted
        self._deadlines = 0  # how many of them have one
        self._raised: dict[int, Priority] = {}  # of those of them that got a higher class meanwhile
        self._unmade: set[int] = set()  # of this epoch, with the other thread: also cancelled ones, they may crash us
        self._selector = selectors.DefaultSelector()
        self._leaving = False
        self._broken_off: Priority | None = None  # the class whose step has just ended early for a higher one
        channel.setblocking(False)
        self._selector.register(channel, selectors.EVENT_READ, self._on_control)
        self._selector.register(self._preparing.fd, selectors.EVENT_READ, self._on_prepared)

    def leave(self, *_: object) -> None:
        """End after the present step. A signal handler may call it, and so may another thread."""
        self._leaving = True
        self._preparing.wake()

    def run(self) -> None:
        """The loop. Blocks only when there is nothing to compute."""
        try:
            while not self._leaving:
                for key, mask in self._selector.select(0 if self._can_step() or self._heard() else IDLE_S):
                    key.data(mask)
                if self._heard():
                    self._on_pipe(selectors.EVENT_READ)
                if self._deadlines:
                    self._expire()
                if self._can_step():
                    self._step()
                else:
                    self._row.beat(self._engine.statistics(), len(self._held), self._pipe)
                    tick()
                if self._preparing.pending and self._preparing.stuck_s() > PREPARE_LIMIT_S:
                    raise EngineFailed(f"a prompt took longer than {PREPARE_LIMIT_S:g} s to prepare")
        finally:
            if self._leaving:  # whoever goes without a word has crashed
                self._send([Refused(handle, "leaving") for handle in self._held])
            self._unlink()
            self._selector.close()

    def close(self) -> None:
        """After `run` has returned, when nobody can call `leave` any more."""
        self._preparing.close()

    def _can_step(self) -> bool:
        return self._engine.busy() and not (self._pipe is not None and self._pipe.full)

    def _heard(self) -> bool:
        """Frames came in the middle of the last step, which the selector cannot know."""
        return self._pipe is not None and self._pipe.heard

    def _step(self) -> None:
        self._broken_off = None
        try:
            events: list[Any] = self._engine.step(self._interrupted, self._urgent)
        except MetamusesdError as error:
            events = self._fail_all(error)
        self._release(events)
        self._row.stepped(self._engine.statistics(), len(self._held), self._pipe)
        self._send(events)

    def _interrupted(self, handle: int) -> bool:
        """Asked by the engine inside a step: does nobody want that sequence any more? All else waits for its end."""
        if self._pipe is None or 0 < self._held.get(handle, 0) <= time.monotonic_ns():
            return True
        over, cancelled = self._pipe.listen()
        return over or handle in cancelled

    def _urgent(self, priority: Priority) -> bool:
        """Asked likewise: has a job of a higher class come, that waits for the end of this step?"""
        if self._pipe is None:
            return False
        _, cancelled = self._pipe.listen()
        heard = [order for order in self._pipe.orders() if order.handle not in cancelled]
        ready = [order for order in self._preparing.ready(self._pipe.epoch) if order.handle in self._held]
        coming = [max(order.priority, self._raised.get(order.handle, 0)) for order in (*heard, *ready)]
        known = {*self._held, *(order.handle for order in heard)}
        raised = [to for handle, to in self._pipe.raises() if handle in known]
        if max((*coming, *raised), default=0) <= priority:
            return False
        self._broken_off = priority
        return True

    def _fail_all(self, error: MetamusesdError) -> list[Any]:
        """The batch could not be computed: every sequence of it ends with the error and may be tried elsewhere."""
        self._log.error("step failed", code=error.code, problem=error.message)
        failed = [handle for handle in self._held if self._engine.cancel(handle)]
        return [Finished(handle, error=error.to_dict()) for handle in failed]

    def _release(self, events: Iterable[Any]) -> None:
        for event in events:
            if type(event) is not Finished:
                continue
            self._row.jobs += 1
            if self._held.pop(event.handle, 0):
                self._deadlines -= 1

    def _send(self, events: list[Any]) -> None:
        if events and self._pipe is not None:
            self._pipe.send(Frame.EVENTS, events)
            self._watch_pipe()

    # what comes in

    def _on_control(self, _: int) -> None:
        try:
            received = control.receive(self._control)
        except BlockingIOError:
            return
        except OSError:
            received = None
        if received is None:
            self._leaving = True
            return
        message, fd = received
        if message.get("do") == "link" and fd is not None:
            self._link(fd, int(message["epoch"]))

    def _link(self, fd: int, epoch: int) -> None:
        """A new epoch: nothing of the old one may be heard on it."""
        self._unlink()
        pipe = self._pipe = Pipe(fd, epoch)
        self._selector.register(pipe, selectors.EVENT_READ, self._on_pipe)
        self._row.linked(epoch)
        pipe.send(Frame.HELLO, self._hello())
        self._watch_pipe()
        self._log.info("linked", epoch=epoch)

    def _unlink(self) -> None:
        for handle in self._held:
            self._engine.cancel(handle)
        self._held.clear()
        self._unmade.clear()
        self._raised.clear()
        self._deadlines = 0
        if self._pipe is not None:
            self._selector.unregister(self._pipe)
            self._pipe.close()
            self._pipe = None

    def _watch_pipe(self) -> None:
        pipe = self._pipe
        if pipe is not None:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if pipe.waiting else 0)
            if self._selector.get_key(pipe).events != wanted:
                self._selector.modify(pipe, wanted, self._on_pipe)

    def _on_pipe(self, mask: int) -> None:
        pipe = self._pipe
        if pipe is None:
            return
        if mask & selectors.EVENT_WRITE:
            pipe.flush()
            self._watch_pipe()
        if not mask & selectors.EVENT_READ:
            return
        try:
            for frame, payload in pipe.receive():
                self._row.received(pipe.frames)
                self._on_frame(frame, payload, pipe.epoch)
        except EOFError:
            self._log.info("pipe closed by the dispatcher", epoch=pipe.epoch)
            self._lose(pipe)
        except WireError as error:
            self._log.error("garbage on the pipe", epoch=pipe.epoch, problem=error.message)
            self._lose(pipe)

    def _lose(self, pipe: Pipe) -> None:
        """This epoch is over. The supervisor knows whether the dispatcher lives, and makes a new pipe in any case."""
        self._unlink()
        control.send(self._control, {"say": "relink", "epoch": pipe.epoch})

    def _on_frame(self, frame: Frame, payload: Any, epoch: int) -> None:
        if frame is Frame.GENERATE:
            idle = not self._engine.busy()
            self._send([event for order in payload if (event := self._take(order, epoch, idle))])
        elif frame is Frame.CANCEL:
            self._send([event for handle in payload if handle in self._held and (event := self._cancel(handle))])
        elif frame is Frame.RAISE:
            for handle, priority in payload:
                self._raise(handle, Priority(priority))
        else:
            raise WireError(f"a worker does not take {frame.name}")

    def _take(self, order: Generate, epoch: int, idle: bool) -> Event | None:
        """Start one job; the event is its end, if it has one already."""
        deadline_ns = time.monotonic_ns() + order.deadline_in_ms * 1_000_000 if order.deadline_in_ms else 0
        self._held[order.handle] = deadline_ns
        self._deadlines += bool(deadline_ns)
        urgent = self._broken_off is not None and order.priority > self._broken_off
        made = self._preparing.now(epoch, order, deadline_ns, ahead=urgent) if idle or urgent else None
        if made is not None:
            return self._admit(made)
        self._unmade.add(order.handle)
        self._preparing.later(epoch, order, deadline_ns)
        return None

    def _raise(self, handle: int, priority: Priority) -> None:
        """A job of a higher class waits for this one. While it is being prepared, that is remembered."""
        if handle in self._unmade:
            self._raised[handle] = priority
        else:
            self._engine.promote(handle, priority)

    def _wanted(self, epoch: int, handle: int) -> bool:
        """On the thread that prepares: neither cancelled nor of an older epoch."""
        pipe = self._pipe
        return pipe is not None and pipe.epoch == epoch and handle in self._held

    def _on_prepared(self, _: int) -> None:
        self._preparing.drain_fd()
        self._send([event for made in self._preparing.take() if (event := self._admit(made))])

    def _admit(self, made: Made) -> Event | None:
        handle = made.order.handle
        if self._pipe is None or made.epoch != self._pipe.epoch:
            return None  # its epoch is over
        self._unmade.discard(handle)
        priority = self._raised.pop(handle, None)
        if handle not in self._held:
            return Finished(handle, "cancelled")
        event: Event | None = None
        try:
            if made.error is not None:
                event = Finished(handle, error=made.error.to_dict())
            elif made.prepared is None or 0 < made.deadline_ns <= time.monotonic_ns():
                event = Finished(handle, "deadline")
            else:
                self._engine.admit(made.prepared.promoted(priority) if priority is not None else made.prepared)
        except NoCapacity as error:
            event = Refused(handle, error.code)
            self._log.debug("no room", job=made.order.id, attempt=made.order.attempt, problem=error.message)
        except MetamusesdError as error:
            event = Finished(handle, error=error.to_dict())
        if event is not None and self._held.pop(handle, 0):
            self._deadlines -= 1
        return event

    def _cancel(self, handle: int, reason: str = "cancelled") -> Finished | None:
        """None: the other thread is at it, or will pass it by; its end is said then, and not before.

        The dispatcher relies on that: whose end was said is not to blame for a crash any more.
        """
        self._engine.cancel(handle)
        if self._held.pop(handle, 0):
            self._deadlines -= 1
        return None if handle in self._unmade else Finished(handle, reason)

    def _expire(self) -> None:
        """End what is past its deadline; what is still being prepared, when it comes."""
        now_ns = time.monotonic_ns()
        late = [
            handle
            for handle, deadline_ns in self._held.items()
            if deadline_ns and deadline_ns <= now_ns and handle not in self._unmade
        ]
        self._send([event for handle in late if (event := self._cancel(handle, "deadline"))])
