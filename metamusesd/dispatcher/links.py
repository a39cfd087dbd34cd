"""Stages 7, 9 · dispatcher · its ends of the workers' pipes: orders of one moment in one frame, events to their runs.

A Link is one epoch of one pipe. It can be used after the worker's HELLO, and it is over at EOF or at garbage; what its
runs then become is decided by the fleet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from metamusesd.board import Board
from metamusesd.dispatcher.run import Lost, Run
from metamusesd.dispatcher.scheduler import NOTHING_REFUSED, WorkerLoad, standing
from metamusesd.errors import WireError
from metamusesd.log import Logger
from metamusesd.wire import Finished, Frame, FrameReader, Generate, Hello, Refused, Token, encode

FRAME_BYTES = 4 * 1024 * 1024  # a frame is closed when it has so much: a long one would keep the worker from its steps


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a link tells the dispatcher."""

    ready: Callable[[Link], None]
    tokens: Callable[[Run, Token], None]
    ended: Callable[[Run, Finished | Refused], None]
    freed: Callable[[Link], None]  # it may have room again
    lost: Callable[[Link], None]
    changed: Callable[[Link], None]  # it came, went, or its worker holds nothing any more


class Link(asyncio.Protocol):
    """One pipe to one worker."""

    def __init__(self, row: int, epoch: int, worker: str, tier: str, board: Board, hooks: Hooks, log: Logger) -> None:
        self.row, self.epoch, self.worker, self.tier = row, epoch, worker, tier
        self.hello: Hello | None = None
        self.load = WorkerLoad(0, 0)
        self.runs: dict[int, Run] = {}
        self.ghosts: set[int] = set()  # cancelled here; the worker has not said yet that it has dropped them
        self.closed = False
        self.retired = False  # its worker gets nothing more, for now
        self.retirements = 0
        self.read_frames = 0  # when it was over: frames that the worker had looked at
        self.fate: Lost | None = None  # how its worker ended, once that is known
        self.idle: asyncio.Event = asyncio.Event()
        self._board, self._hooks, self._log = board, hooks, log
        self._reader = FrameReader(epoch)
        self._transport: asyncio.Transport | None = None
        self._handles = self._frames = 0
        self._orders: list[Generate] = []
        self._cancels: list[int] = []
        self._raises: list[tuple[int, int]] = []
        self._flushing = False
        self.idle.set()
        board.reset_frames_sent(row)

    def __repr__(self) -> str:
        return f"<Link {self.worker} epoch={self.epoch} runs={len(self.runs)}{' closed' if self.closed else ''}>"

    def send(self, run: Run) -> None:
        """Stage 7: order this run. It leaves with the others of this turn of the loop."""
        self._handles += 1
        run.link, run.handle, run.alone = self, self._handles, not (self.runs or self.ghosts)
        for other in self.runs.values():
            other.alone = False
        self.runs[run.handle] = run
        self.idle.clear()
        claim = run.claim
        self.load.by_class[standing(claim)] += 1
        self.load.prompt_tokens += run.prompt_estimate
        left_ms = run.deadline_in_ms()
        order = Generate(run.handle, claim.priority, claim.body, claim.aged, left_ms, claim.id, claim.attempt)
        self._orders.append(order)
        self._soon()

    def promote(self, run: Run, priority: int) -> None:
        """It has a higher class from now on, here and in its worker."""
        if run.handle not in self.runs or priority <= run.claim.priority:
            return
        self.load.by_class[standing(run.claim)] -= 1
        run.claim = replace(run.claim, priority=priority)
        self.load.by_class[standing(run.claim)] += 1
        self._raises.append((run.handle, priority))
        self._soon()

    def cancel(self, run: Run) -> None:
        """The worker may drop it; nothing more is heard of it here."""
        if not self.release(run) or self.closed:
            return
        waiting = [order for order in self._orders if order.handle != run.handle]
        if len(waiting) == len(self._orders):
            self._cancels.append(run.handle)
            self.ghosts.add(run.handle)
            self._soon()
        self._orders = waiting
        self._rest()

    def release(self, run: Run) -> bool:
        """It holds no place any more. False: it held none."""
        if self.runs.pop(run.handle, None) is None:
            return False
        self.load.by_class[standing(run.claim)] -= 1
        if not run.first_ns:
            self.computed(run)
        if not self.runs:
            self.idle.set()
        return True

    @property
    def empty(self) -> bool:
        """Its worker holds nothing, as far as anybody here can know. DANGER: what was cancelled may still crash it."""
        return not (self.runs or self.ghosts)

    def computed(self, run: Run) -> None:
        """Its prompt is behind it."""
        self.load.prompt_tokens -= run.prompt_estimate

    def close(self) -> None:
        """Hang up. Legal twice."""
        if self._transport is not None:
            self._transport.abort()

    def _rest(self) -> None:
        if self.empty:
            self._hooks.changed(self)

    def _soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        orders, cancels, raises = self._orders, self._cancels, self._raises
        self._orders, self._cancels, self._raises = [], [], []
        if self.closed or self._transport is None:
            return
        if cancels:  # first: the new orders may need the places
            self._write(Frame.CANCEL, cancels)
        batch: list[Generate] = []
        size = 0
        for order in orders:
            size += len(order.body)
            batch.append(order)
            if size > FRAME_BYTES:
                self._order(batch)
                batch, size = [], 0
        if batch:
            self._order(batch)
        if raises:  # last: they may be of jobs that go with this flush
            self._write(Frame.RAISE, raises)

    def _order(self, batch: list[Generate]) -> None:
        self._write(Frame.GENERATE, batch)
        for order in batch:
            if (run := self.runs.get(order.handle)) is not None:
                run.frame = self._frames

    def _write(self, frame: Frame, payload: object) -> None:
        assert self._transport is not None
        self._transport.write(encode(frame, self.epoch, payload))
        self._frames += 1
        self._board.add_frame_sent(self.row)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        try:
            for frame, payload in self._reader.feed(data):
                if frame is Frame.EVENTS:
                    self._demultiplex(payload)
                elif frame is Frame.HELLO:
                    self._greet(payload)
                else:
                    raise WireError(f"a dispatcher does not take {frame.name}")
        except WireError as error:
            self._log.error("garbage on the pipe", worker=self.worker, problem=error.message)
            self.close()

    def _greet(self, hello: Hello) -> None:
        self.hello, self.tier = hello, hello.tier or self.tier
        self.load.slots, self.load.reserve_slots = hello.slots, hello.reserve_slots
        self._hooks.ready(self)

    def _demultiplex(self, events: list[Token | Finished | Refused]) -> None:
        """Stage 9. A handle that is not known was cancelled here a moment ago; the worker has dropped it only now."""
        runs, hooks = self.runs, self._hooks
        for event in events:
            run = runs.get(event.handle)
            if type(event) is Token:
                if run is not None:
                    hooks.tokens(run, event)
                continue
            if type(event) is Finished:
                self.load.refused = NOTHING_REFUSED
            self.ghosts.discard(event.handle)
            if run is not None:
                self.release(run)
                hooks.ended(run, event)  # type: ignore[arg-type]
            hooks.freed(self)
            self._rest()

    def _read_frames(self) -> int:
        """How many frames its worker has looked at, by the board; all, when another epoch stands there already."""
        row = self._board.workers[self.row].read()
        return row["frames_received"] if row is not None and row["epoch"] == self.epoch else self._frames

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.read_frames = self._read_frames()
        self.idle.set()
        self._hooks.lost(self)
