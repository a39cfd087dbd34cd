"""Stages 6, 7 · dispatcher · the live workers: links come and go by the supervisor's word; a run finds its worker.

link   (from the supervisor) ─► connect ─► HELLO ─► the worker can be picked
EOF    ─► nobody picks it any more; its runs wait for the evidence:
unlink (from the supervisor): how it ended · a newer link: it lives, only the pipe broke · nothing in time: a crash
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from metamusesd.board import Board, rates
from metamusesd.dispatcher.links import Hooks, Link
from metamusesd.dispatcher.places import Option, Order, finish_s, place
from metamusesd.dispatcher.run import Lost, Run
from metamusesd.dispatcher.scheduler import NOTHING_REFUSED, wants
from metamusesd.job import InferenceRequest
from metamusesd.log import Logger
from metamusesd.queues.base import Want

LADDER_MS = 5000  # what the end of a hung worker may take: its stacks, SIGKILL
EVIDENCE_S = 0.5  # how long after EOF the supervisor may take to say how the worker ended
REFUSED_PAUSE_S = 1.0
WARM_PREFIXES = 32


class Fleet:
    """All links of one dispatcher. `freed` hears of every place that becomes free."""

    def __init__(self, board: Board, tiers: list[str], hooks: Hooks, freed: Callable[[str], None], log: Logger) -> None:
        self.ready: dict[str, list[Link]] = {tier: [] for tier in tiers}
        self._links: dict[int, Link] = {}  # by row: the newest one
        self._warm: dict[str, OrderedDict[bytes, None]] = {}  # worker → digests of prompt beginnings
        self._board, self._wake, self._log = board, freed, log
        self._hooks = replace(hooks, ready=self._greeted, freed=self.freed, lost=self._closed)

    def __repr__(self) -> str:
        return f"<Fleet {[link for links in self.ready.values() for link in links]}>"

    @property
    def size(self) -> int:
        """Workers that can be picked."""
        return sum(len(links) for links in self.ready.values())

    # the supervisor's word

    async def connect(self, row: int, epoch: int, worker: str, tier: str, fd: int) -> None:
        """A fresh pipe. An older one of this row is over, but its worker lives unless `unlink` said otherwise."""
        older = self._links.get(row)
        if older is not None:
            self._judge(older, Lost(crashed=False, reason="lost"))
            older.close()
        link = self._links[row] = Link(row, epoch, worker, tier, self._board, self._hooks, self._log)
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=sock)

    def unlink(self, message: Mapping[str, Any]) -> None:
        """This worker died, and how: the supervisor's message. Killed from outside is no crash; nor is leaving, but a
        worker that leaves refuses what it holds: a job that is still in it now is one that made it exit."""
        link = self._links.get(int(message["row"]))
        if link is not None and link.epoch == int(message["epoch"]):
            self._warm.pop(link.worker, None)
            self._judge(link, fate(message))

    def retire(self, row: int, epoch: int) -> Link | None:
        """It gets no more runs; those that it has go on. None: it is gone already."""
        link = self._links.get(row)
        if link is None or link.epoch != epoch or link.closed:
            return None
        link.retired = True
        link.retirements += 1
        self._retire(link)
        return link

    def resume(self, row: int, epoch: int) -> None:
        """A retired one gets runs again."""
        link = self._links.get(row)
        if link is None or link.epoch != epoch or link.closed or not link.retired:
            return
        link.retired = False
        if link.hello is not None:
            self._enlist(link)

    def _greeted(self, link: Link) -> None:
        self._log.info("worker linked", worker=link.worker, epoch=link.epoch, tier=link.tier)
        if not link.retired:
            self._enlist(link)

    def _enlist(self, link: Link) -> None:
        self.ready.setdefault(link.tier, []).append(link)
        self.freed(link)
        self._hooks.changed(link)

    def _closed(self, link: Link) -> None:
        """EOF or garbage. The runs wait a moment for the evidence."""
        self._retire(link)
        if link.fate is not None:
            self._release(link)
        elif link.runs:
            asyncio.get_running_loop().call_later(EVIDENCE_S, self._judge, link, Lost(crashed=True))

    def _judge(self, link: Link, fate: Lost) -> None:
        """How its runs ended. The first word counts; with words of the worker still in the pipe, EOF comes first."""
        if link.fate is None:
            link.fate = fate
            self._retire(link)
            if link.closed:
                self._release(link)
            else:
                asyncio.get_running_loop().call_later(EVIDENCE_S, link.close)

    def _release(self, link: Link) -> None:
        """Its runs share its fate; not those whose order it never looked at: they were not in the process that died."""
        assert link.fate is not None
        runs = list(link.runs.values())
        inside = [run for run in runs if 0 < run.frame <= link.read_frames]
        for run in runs:
            run.neighbours = len(inside) + len(link.ghosts) - 1
            link.release(run)
            run.finish(link.fate if run in inside else Lost(crashed=False, reason="lost"))

    def _retire(self, link: Link) -> None:
        if link in self.ready.get(link.tier, ()):
            self.ready[link.tier].remove(link)
            self._hooks.changed(link)

    def close(self) -> None:
        """Hang up on everybody; they wait for their next link."""
        for link in self._links.values():
            link.close()

    # the scheduler's door

    def wants(self) -> list[Want]:
        """What could be claimed for the free places now."""
        return wants({tier: [link.load for link in links] for tier, links in self.ready.items() if links})

    def contexts(self) -> dict[str, int]:
        """The smallest context of the workers of every tier that has some: who is sent there may meet that one."""
        return {
            tier: min(link.hello.context for link in links if link.hello) for tier, links in self.ready.items() if links
        }

    def place(self, run: Run, tiers: Sequence[str], order: Order, key: bytes) -> Link | None:
        """Stage 6: the worker of these tiers that gets the run. None: none has room. `key`: see prefix_digest."""
        links = [link for tier in tiers for link in self.ready.get(tier, ())]
        placed = place([self._option(link, key) for link in links], order)
        if placed is None:
            return None
        link = links[placed[0]]
        run.placed = placed[1]
        self._remember(link.worker, key)
        return link

    def run_s(self, tier: str, order: Order, key: bytes) -> float | None:
        """How long such a job would take in this tier once it is there; None: no worker of this host serves it."""
        options = [self._option(link, key) for link in self.ready.get(tier, ())]
        return min((finish_s(option, order) for option in options), default=None)

    def _option(self, link: Link, key: bytes) -> Option:
        return Option(link.worker, link.tier, link.load, bool(key) and key in self._warm.get(link.worker, ()))

    def freed(self, link: Link) -> None:
        """This worker may have room again."""
        self._wake(link.tier)

    def refused(self, link: Link, priority: int) -> None:
        """The worker had no room after all, and knows best: nothing of this class until one of its jobs ends, or for a
        while, should the reason pass without that."""
        link.load.refused = max(link.load.refused, priority)
        asyncio.get_running_loop().call_later(REFUSED_PAUSE_S, self._resume, link)

    def refresh(self) -> None:
        """Read the measured rates off the board."""
        for links in self.ready.values():
            for link in links:
                if (row := self._board.workers[link.row].read()) is not None:
                    link.load.prefill_rate, link.load.decode_rate = rates(row)

    def gets_on(self, link: Link, now_ns: int, guess_ms: int) -> bool:
        """Whether its worker may still be at work: the supervisor judges, and kills what is hung. Only when nobody does
        that, long after the time, are the jobs let go. `guess_ms`: the patience while the supervisor has named none."""
        patience_ms = self._board.slots[link.row].get("patience_ms") or guess_ms
        return now_ns - self.progress_ns(link) < 1_000_000 * (patience_ms * 2 + LADDER_MS)

    def progress_ns(self, link: Link) -> int:
        """When this worker last showed that it gets on, and the length of its steps; for the renewal of leases."""
        row = self._board.workers[link.row]
        return max(row.get("beat_ns"), row.get("last_step_ns")) + 20 * row.get("step_ns")

    def _resume(self, link: Link) -> None:
        link.load.refused = NOTHING_REFUSED
        self.freed(link)

    def _remember(self, worker: str, key: bytes) -> None:
        if key:
            known = self._warm.setdefault(worker, OrderedDict())
            known[key] = None
            known.move_to_end(key)
            if len(known) > WARM_PREFIXES:
                known.popitem(last=False)


def fate(message: Mapping[str, Any]) -> Lost:
    """What an `unlink` message means for the runs of that worker."""
    if message.get("killed"):
        return Lost(crashed=False, reason="worker_killed", killed=True)
    told, reason = message.get("evidence"), "hung" if message.get("hung") else "worker_died"
    return Lost(crashed=True, reason=reason, evidence=told if isinstance(told, dict) else {})


def prefix_digest(request: InferenceRequest) -> bytes:
    """Names the beginning of a prompt: the persona with its traits, or the system message. Empty: nothing to share."""
    system = next((message.content for message in request.messages or () if message.role == "system"), "")
    text = request.persona or system
    if not text:
        return b""
    return hashlib.blake2b(f"{text}\0{request.personality_traits}".encode(), digest_size=8).digest()
