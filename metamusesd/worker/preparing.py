"""Stage 8 · worker · parse, render and tokenize beside the step thread, so that a long prompt stalls nobody's tokens.

One thread, in order. It only calls `engine.prepare`; what it made waits in `take()` until the step loop collects it.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from metamusesd.engines.base import Engine, Prepared, Task
from metamusesd.errors import EngineFailed, MetamusesdError
from metamusesd.job import InferenceRequest, Priority, parse_request
from metamusesd.wire import Generate

INLINE_BYTES = 4096
CLOSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Made:
    """What became of one Generate: `prepared`, or the error that ends it; neither: nobody wants it any more."""

    epoch: int
    order: Generate
    deadline_ns: int
    prepared: Prepared | None = None
    error: MetamusesdError | None = None


class Preparing:
    """Turns Generates into Prepared tasks, for the step thread. `fd` is readable when something is made.

    `wanted` is asked on the other thread, before the work on (epoch, handle) begins.
    """

    def __init__(self, engine: Engine, wanted: Callable[[int, int], bool]) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.pending = 0  # handed in and not yet taken
        self._engine, self._wanted = engine, wanted
        self._orders: queue.SimpleQueue[tuple[int, Generate, int] | None] = queue.SimpleQueue()
        self._made: deque[Made] = deque()
        self._thread: threading.Thread | None = None
        self._since_ns = 0  # when the present work began; 0: none

    def now(self, epoch: int, order: Generate, deadline_ns: int, *, ahead: bool = False) -> Made | None:
        """Prepare on the caller's thread, when nobody is stalled by it and it is sure to be quick; else None. `ahead`:
        of those, too, that the other thread has been given."""
        if (self.pending and not ahead) or len(order.body) > INLINE_BYTES:
            return None
        try:
            request = parse_request(order.body)
        except MetamusesdError as error:
            return Made(epoch, order, deadline_ns, error=error)
        if request.params.grammar is not None or request.params.json_schema is not None:
            return None
        return _make(self._engine, epoch, order, deadline_ns, request)

    def later(self, epoch: int, order: Generate, deadline_ns: int) -> None:
        """Prepare on the other thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="prepare", daemon=True)
            self._thread.start()
        self.pending += 1
        self._orders.put((epoch, order, deadline_ns))

    def take(self) -> list[Made]:
        """What is ready, in the order of the calls."""
        made = []
        while self._made:
            made.append(self._made.popleft())
        self.pending -= len(made)
        return made

    def ready(self, epoch: int) -> list[Generate]:
        """The orders of this epoch that `take` would give to be admitted, or none: the other thread is adding one."""
        try:
            return [made.order for made in self._made if made.epoch == epoch and made.prepared is not None]
        except RuntimeError:
            return []

    def stuck_s(self) -> float:
        """How long the thread has been at its present work."""
        since_ns = self._since_ns
        return (time.monotonic_ns() - since_ns) / 1e9 if since_ns else 0.0

    def wake(self) -> None:
        """Make `fd` readable."""
        os.eventfd_write(self.fd, 1)

    def close(self) -> None:
        """End the thread after its present work."""
        if self._thread is not None:
            self._orders.put(None)
            self._thread.join(CLOSE_S)
        if self._thread is None or not self._thread.is_alive():
            os.close(self.fd)

    def drain_fd(self) -> None:
        """After `fd` was readable, before `take`."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass

    def _run(self) -> None:
        while (work := self._orders.get()) is not None:
            self._since_ns = time.monotonic_ns()
            epoch, order, deadline_ns = work
            wanted = self._wanted(epoch, order.handle)
            self._made.append(_make(self._engine, *work, None) if wanted else Made(epoch, order, deadline_ns))
            self._since_ns = 0
            self.wake()


def _make(engine: Engine, epoch: int, order: Generate, deadline_ns: int, request: InferenceRequest | None) -> Made:
    """Every error of one request ends in its own Made; none ends the thread."""
    try:
        if deadline_ns and time.monotonic_ns() >= deadline_ns:
            return Made(epoch, order, deadline_ns)
        request = request or parse_request(order.body)
        task = Task(order.handle, request, Priority(order.priority), order.aged, deadline_ns)
        return Made(epoch, order, deadline_ns, prepared=engine.prepare(task))
    except MetamusesdError as error:
        return Made(epoch, order, deadline_ns, error=error)
    except Exception as error:  # a bug in an engine must not take the neighbours along
        return Made(epoch, order, deadline_ns, error=EngineFailed(f"prepare: {type(error).__name__}: {error}"))
