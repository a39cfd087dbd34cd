"""Stage 6 · dispatcher · jobs under which workers died run one at a time, each in a worker that was emptied for it.

    join ─► wait for the tier's turn ─► close a worker to others ─► it has emptied ─► send ─► end ─► open it again

At most one worker of a tier is kept for that at a time; between two such jobs it takes others for a moment. Whoever
waits here is held like any run: its lease is renewed, and a cancel or its deadline ends it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from metamusesd.dispatcher.fleet import Fleet
from metamusesd.dispatcher.links import Link
from metamusesd.dispatcher.run import Back, Run
from metamusesd.queues.base import Verdict

MOST_WAITING = 64  # in one tier; what comes over that goes back for a while
BACK_MS = 1000
BREATH_S = 0.1


@dataclass(slots=True)
class _Room:
    """One tier: who waits, who has the turn, and the worker that is kept for it."""

    waiting: list[Run] = field(default_factory=list)
    run: Run | None = None
    link: Link | None = None
    resting: bool = False


class Alone:
    """Decides on every change what can be done now; nothing here waits. `send` is the end of it."""

    def __init__(self, fleet: Fleet, send: Callable[[Run, Link], None]) -> None:
        self._fleet, self._send = fleet, send
        self._rooms: dict[str, _Room] = {}

    def __repr__(self) -> str:
        return f"<Alone {self._rooms}>"

    def join(self, run: Run) -> None:
        """It shall run alone, on a worker of the tier that it was claimed from."""
        tier = run.claim.queue
        room = self._rooms.setdefault(tier, _Room())
        if len(room.waiting) >= MOST_WAITING:
            run.finish(Back("alone", BACK_MS))
            return
        room.waiting.append(run)
        run.end.add_done_callback(lambda _: self.look(tier))
        self.look(tier)

    def give_back(self, tier: str) -> None:
        """The tier has no worker any more that may have jobs: who waits here may run elsewhere."""
        room = self._rooms.get(tier, _Room())
        for run in [*room.waiting, *([room.run] if room.run is not None and room.run.link is None else [])]:
            run.finish(Back("retired"))

    def changed(self, link: Link) -> None:
        """This worker came, went, or has emptied."""
        self.look(link.tier)

    def look(self, tier: str) -> None:
        """Do what can be done now for this tier."""
        room = self._rooms.get(tier)
        if room is None:
            return
        if room.run is not None and room.run.end.done():
            self._leave(tier, room)
        room.waiting = [run for run in room.waiting if not run.end.done()]
        if room.run is None and room.waiting and not room.resting:
            room.run = max(room.waiting, key=lambda run: run.claim.priority)  # the first of the highest
            room.waiting.remove(room.run)
        if room.run is not None and room.run.link is None:
            self._prepare(tier, room, room.run)

    def _prepare(self, tier: str, room: _Room, run: Run) -> None:
        """Keep a worker for it, and send it when that one is empty."""
        links = self._fleet.ready.get(tier, [])
        if room.link not in links:
            if room.link is not None:
                room.link.load.closed = False  # it may come back: a drain that is taken back
            room.link = min(links, key=lambda link: len(link.runs), default=None)
        if room.link is None:
            return
        room.link.load.closed = True
        if not room.link.empty:
            return
        if run.overdue:
            run.finish(Verdict.EXPIRED)
        else:
            self._send(run, room.link)

    def _leave(self, tier: str, room: _Room) -> None:
        """Its turn is over. Others get the worker first: a row of such jobs must not shut a tier's only one."""
        link, room.run, room.link = room.link, None, None
        if link is not None:
            link.load.closed = False
            self._fleet.freed(link)
        room.resting = True
        asyncio.get_running_loop().call_later(BREATH_S, self._rested, tier, room)

    def _rested(self, tier: str, room: _Room) -> None:
        room.resting = False
        self.look(tier)
