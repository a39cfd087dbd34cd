"""Stage 9 · producer · the ends of a watch: each lets one reader see a job's events once and in order. No I/O.

Events come from three sources – the mailbox, the job's own stream, its result – twice, late, or not at all. Whoever
brings one says in which run of the job it happened: how many `restarted` came before it in that source. (The attempt
does not tell: a job given back unburnt keeps it.) A Feed admits text by (run, offset):

    behind what was seen   dropped, or cut to its new part
    beyond what was seen   dropped, and `offer` says so: the job's own stream has what is missing
    a newer run            first `restarted`, then text from offset 0
    done                   first a token event with the text still missing, then `done`
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace

from metamusesd.job import TERMINAL, Result, decode_result
from metamusesd.queues.base import JobEvent

MERGE_ABOVE = 64  # events that a slow reader leaves lying before token events are merged
ENDS = frozenset(str(state) for state in TERMINAL)


class Ending:
    """Waits for a job's terminal event and for nothing else."""

    __slots__ = ("future",)
    whole = False  # needs no other event

    def __init__(self) -> None:
        self.future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def offer(self, event: JobEvent, run: int = 0) -> bool:
        """Any event of the job, from any source; False."""
        if event.kind in ENDS and not self.future.done():
            self.future.set_result(decode_result(event.data))
        return False

    def fail(self, error: Exception) -> None:
        """The wait cannot end well."""
        if not self.future.done():
            self.future.set_exception(error)


class Feed:
    """A queue of one job's events for one reader, which calls `next` until a terminal event.

    It begins closed: what is offered waits for `catch_up`, which brings the past, so that text cannot seem missing.
    """

    __slots__ = ("_error", "_events", "_held", "_offset", "_queued_ms", "_run", "_started", "_text", "_wake", "ended")
    whole = True  # needs every event

    def __init__(self) -> None:
        self.ended = False
        self._held: list[tuple[JobEvent, int]] | None = []
        self._started = False
        self._run = self._offset = 0
        self._queued_ms = -1
        self._text: list[str] = []
        self._events: deque[JobEvent] = deque()
        self._error: Exception | None = None
        self._wake: asyncio.Future[None] | None = None

    async def next(self) -> JobEvent:
        """The next event; raises what `fail` was given, after the events before it."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        return self._events.popleft()

    def empty(self) -> bool:
        """True when `next` would have to wait."""
        return not self._events

    def fail(self, error: Exception) -> None:
        """No more events will come."""
        self._error = error
        self._ring()

    def catch_up(self, past: list[tuple[JobEvent, int]]) -> None:
        """What happened before; from now on events are let through at once."""
        held, self._held = self._held or [], None
        for event, run in past + held:
            self.offer(event, run)

    def offer(self, event: JobEvent, run: int = 0) -> bool:
        """Any event of the job, from any source. True: text before it is missing."""
        if self._held is not None:
            self._held.append((event, run))
            return False
        if self.ended or (run < self._run and event.kind not in ENDS):
            return False
        if event.kind in ENDS:
            self._end(event)
            return False
        if run > self._run:
            self._restart(event)
            self._run = run
        if event.kind == "token":
            return self._add(event)
        if event.kind == "queued":
            self._move(event)
        elif event.kind == "started" and not self._started:
            self._started = True
            self._push(event)
        return False

    def _restart(self, event: JobEvent) -> None:
        """A reader that saw an older run is told to forget its text."""
        if self._started or self._text:
            self._push(event if event.kind == "restarted" else JobEvent("", event.id, "restarted", event.attempt))
        self._text.clear()
        self._offset, self._started = 0, False

    def _move(self, event: JobEvent) -> None:
        """Its place while it waits: never an older one after a newer one, and of those that nobody read the last."""
        at_ms = int(event.cursor.partition("-")[0] or 0)
        if self._started or self._text or at_ms <= self._queued_ms:
            return
        self._queued_ms = at_ms
        if self._events and self._events[-1].kind == "queued":
            self._events.pop()
        self._push(event)

    def _add(self, event: JobEvent) -> bool:
        end = event.offset + len(event.text)
        if event.offset > self._offset or end <= self._offset:
            return event.offset > self._offset
        if event.offset < self._offset:
            event = replace(event, offset=self._offset, text=event.text[self._offset - event.offset :])
        self._offset = end
        self._text.append(event.text)
        self._push(event)
        return False

    def _end(self, event: JobEvent) -> None:
        if event.kind == "done":
            content = decode_result(event.data).content
            if not content.startswith("".join(self._text)):
                self._restart(event)
            if missing := content[self._offset :]:
                self._push(JobEvent("", event.id, "token", event.attempt, self._offset, missing))
        self.ended = True
        self._push(event)

    def _push(self, event: JobEvent) -> None:
        last = self._events[-1] if len(self._events) >= MERGE_ABOVE else None
        if last is not None and last.kind == event.kind == "token":
            text, tokens = last.text + event.text, last.tokens + event.tokens
            self._events[-1] = replace(last, cursor=event.cursor, text=text, tokens=tokens)
        else:
            self._events.append(event)
        self._ring()

    def _ring(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
