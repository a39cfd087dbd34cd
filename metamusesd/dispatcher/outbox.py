"""Stages 9, 10 · dispatcher · what is to be written to the queue, gathered: one call a kind and a moment, for all jobs.

While one round of calls is under way, the next gathers. Text of one job is merged. Redis away: everything is kept and
sent again after a pause; that is bounded: only held jobs put something in, and a job's text is bound by its max_tokens.
A call that stumbles over one job's keys is made again for each job by itself: only the one that is broken is given up.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from metamusesd.dispatcher.run import Run
from metamusesd.errors import MetamusesdError, QueueError, QueueFault
from metamusesd.queues.base import Append, Queue, Requeue, Settlement, Verdict

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0

Entry = Append | Settlement | Requeue
GivenUp = Callable[[Entry, MetamusesdError], None]


def pause_s(tries: int) -> float:
    """How long to wait after the n-th failure in a row."""
    return float(min(FIRST_PAUSE_S * 2.0 ** min(tries, 16), LONGEST_PAUSE_S)) * random.uniform(0.5, 1.0)  # noqa: S311 (jitter)


@dataclass(slots=True)
class _Piece:
    """Unwritten text of one run; none: only the verdict is wanted."""

    offset: int
    text: str
    tokens: int


class Outbox:
    """Writes for all runs. `verdict` hears of appends not answered ok, `trouble` of Redis going and coming, `given_up`
    of what cannot be written at all; its verdict is `lost`."""

    def __init__(
        self, queue: Queue, verdict: Callable[[Run, Verdict], None], trouble: Callable[[QueueError | None], None],
        given_up: GivenUp,
    ) -> None:  # fmt: skip
        self._queue, self._verdict, self._trouble, self._given_up = queue, verdict, trouble, given_up
        self._pieces: dict[Run, _Piece] = {}
        self._ends: list[tuple[Settlement, asyncio.Future[Verdict]]] = []
        self._backs: list[tuple[Requeue, asyncio.Future[Verdict]]] = []
        self._posted = asyncio.Event()
        self._open = 0  # ends that are not answered yet
        self.written = asyncio.Event()
        self.written.set()

    def __repr__(self) -> str:
        return f"<Outbox appends={len(self._pieces)} settles={len(self._ends)} requeues={len(self._backs)}>"

    @property
    def pending(self) -> int:
        """Entries that are not under way yet."""
        return len(self._pieces) + len(self._ends) + len(self._backs)

    def append(self, run: Run, offset: int, text: str, tokens: int) -> None:
        """New text of a run; empty text asks for the verdict."""
        piece = self._pieces.get(run)
        if piece is None:
            self._pieces[run] = _Piece(offset, text, tokens)
            self._posted.set()
        elif not piece.text:
            piece.offset, piece.text, piece.tokens = offset, text, tokens
        elif text:
            piece.text += text
            piece.tokens += tokens

    def forget(self, run: Run) -> None:
        """Its end is written: text that Redis has not taken until now is in the result, or is of no use."""
        run.over = True
        self._pieces.pop(run, None)

    def put(self, what: Settlement | Requeue) -> asyncio.Future[Verdict]:
        """The end of a run; the future gets the verdict, however long Redis takes."""
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        if type(what) is Settlement:
            self._ends.append((what, future))
        else:
            self._backs.append((what, future))  # type: ignore[arg-type]
        self._posted.set()
        self._open += 1
        self.written.clear()
        return future

    async def run(self) -> None:
        """Write until cancelled."""
        tries = 0
        while True:
            await self._posted.wait()
            self._posted.clear()
            try:
                await self._round()
            except QueueError as error:
                self._trouble(error)
                await asyncio.sleep(pause_s(tries))
                tries += 1
                self._posted.set()
                continue
            if tries:
                tries = 0
                self._trouble(None)

    async def _round(self) -> None:
        """One call of each kind that is needed. Calls of one moment keep their order on the way: text before end."""
        calls = []
        if self._pieces:
            pieces, self._pieces = self._pieces, {}
            calls.append(self._append(pieces))
        if self._ends:
            ends, self._ends = self._ends, []
            calls.append(self._settle(ends))
        if self._backs:
            backs, self._backs = self._backs, []
            calls.append(self._requeue(backs))
        if len(calls) == 1:
            await calls[0]
        elif calls:
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome

    async def _append(self, pieces: dict[Run, _Piece]) -> None:
        entries = [
            Append(run.claim.id, run.claim.token, piece.offset, piece.text, piece.tokens)
            for run, piece in pieces.items()
        ]
        try:
            verdicts = await self._call(self._queue.append, entries)
        except QueueError:
            self._keep(pieces)
            raise
        for run, verdict in zip(pieces, verdicts, strict=True):
            if verdict is not Verdict.OK:
                self._verdict(run, verdict)

    def _keep(self, pieces: dict[Run, _Piece]) -> None:
        """Put unsent text back before what came after it."""
        later, self._pieces = self._pieces, {run: piece for run, piece in pieces.items() if not run.over}
        for run, piece in later.items():
            self.append(run, piece.offset, piece.text, piece.tokens)

    async def _settle(self, ends: list[tuple[Settlement, asyncio.Future[Verdict]]]) -> None:
        try:
            verdicts = await self._call(self._queue.settle, [end for end, _ in ends])
        except QueueError:
            self._ends[:0] = ends
            raise
        self._answer(ends, verdicts)

    async def _requeue(self, backs: list[tuple[Requeue, asyncio.Future[Verdict]]]) -> None:
        try:
            verdicts = await self._call(self._queue.requeue, [back for back, _ in backs])
        except QueueError:
            self._backs[:0] = backs
            raise
        self._answer(backs, verdicts)

    async def _call(
        self, write: Callable[[Sequence[Any]], Awaitable[list[Verdict]]], entries: list[Any]
    ) -> list[Verdict]:
        """One call for all; where the queue stumbles over one of them, a call for each."""
        try:
            return await write(entries)
        except MetamusesdError as error:
            if not _about_an_entry(error):
                raise
            if len(entries) == 1:
                self._given_up(entries[0], error)
                return [Verdict.LOST]
        return [verdict for entry in entries for verdict in await self._call(write, [entry])]

    def _answer(self, waiting: list[tuple[Any, asyncio.Future[Verdict]]], verdicts: list[Verdict]) -> None:
        for (_, future), verdict in zip(waiting, verdicts, strict=True):
            if not future.done():
                future.set_result(verdict)
        self._open -= len(waiting)
        if not self._open:
            self.written.set()


def _about_an_entry(error: MetamusesdError) -> bool:
    """A key of a wrong type, or something that the script does not take; anything else is about Redis itself."""
    return isinstance(error, QueueFault) or not isinstance(error, QueueError)
