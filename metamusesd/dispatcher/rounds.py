"""All stages · dispatcher · what is done again and again: beat, renew, reap, look at the queues.

The beat never waits for Redis: the supervisor takes a dispatcher without a beat for hung. Everything else waits for
Redis and only skips a turn when it is away. When nobody has been served and nobody has waited for QUIET_AFTER_S, all of
it is done more seldom: an idle daemon sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import replace

from metamusesd.board import QUEUES
from metamusesd.dispatcher.dispatcher import Dispatcher
from metamusesd.dispatcher.outbox import pause_s
from metamusesd.errors import QueueError, QueueFault
from metamusesd.job import Priority
from metamusesd.log import tick
from metamusesd.queues.base import Host, Queue, Suspect, cancels
from metamusesd.tiers import TIERS
from metamusesd.wire import Complain

BEAT_S, QUIET_BEAT_S = 0.05, 0.5
SILENT_NS = 40_000_000  # less than a beat: every beat asks, so that a cancel whose hint was lost is heard soon
HINT_S = 5.0  # the longest wait for the hint of a cancel
GATHER_S = 0.02  # after one: so often at most a flood of cancels makes us ask about every run
SURVEY_S, QUIET_SURVEY_S, SAMPLE_S = 1.0, 3.5, 0.2
REAP_S, QUIET_REAP_S = 1.0, 3.5
QUIET_AFTER_S = 10.0  # longer than the first retries of a job wait: no survey shows those
MOST_SWEEPS = 10  # in a row, when one was not enough
HOST_TTL_S = 10.0
KEPT_S = 10.0


class Rounds:
    """The periodic duties of one dispatcher. Each method runs until it is cancelled."""

    def __init__(
        self, dispatcher: Dispatcher, queue: Queue, owner: str, tiers: list[str], lease_ms: int, hang_s: float
    ) -> None:
        self.draining = False
        self.surveyed = asyncio.Event()  # the other hosts are known
        self._dispatcher, self._queue, self._owner, self._tiers = dispatcher, queue, owner, tiers
        self._lease_ms, self._hang_ms = lease_ms, int(hang_s * 1000)
        self._count_s = 0.0  # when the exact cache is counted again
        self._worked_s, self._claims = time.monotonic(), 0  # when somebody was served or waited; claims until then

    async def beat(self) -> None:
        """Show that the loop turns, and ask about runs that say nothing."""
        dispatcher, due_ns = self._dispatcher, time.monotonic_ns()
        while True:
            lag_ns = max(0, time.monotonic_ns() - due_ns)
            dispatcher.ledger.beat(len(dispatcher.held), dispatcher.fleet.size, self.draining, lag_ns)
            dispatcher.fleet.refresh()
            tick()
            dispatcher.traces.tell()
            dispatcher.ledger.leases(dispatcher.held)
            self.notice(bool(dispatcher.held))
            if dispatcher.held and dispatcher.ledger.redis_ok:
                dispatcher.ask(SILENT_NS)
            rest_s = self.rest_s(BEAT_S, QUIET_BEAT_S)
            due_ns = time.monotonic_ns() + int(rest_s * 1e9)
            await asyncio.sleep(rest_s)

    def rest_s(self, usual_s: float, quiet_s: float) -> float:
        """Until the next round: longer when nobody has been served here, nor has waited anywhere, for a while."""
        quiet = time.monotonic() - self._worked_s > QUIET_AFTER_S and self._dispatcher.ledger.redis_ok
        return quiet_s if quiet else usual_s

    def notice(self, busy: bool) -> None:
        """Somebody is served or waits, or was claimed since the last call: no quiet for a while."""
        claims = self._dispatcher.ledger.claims
        if busy or claims != self._claims:
            self._worked_s, self._claims = time.monotonic(), claims

    async def cancels(self) -> None:
        """A job that runs here was cancelled: ask about every run at once, and not only about silent ones, later."""
        tries = 0
        while True:
            try:
                hinted = await self._queue.wait([cancels(self._owner)], HINT_S)
            except QueueError as error:
                self._dispatcher.ledger.redis(error)
                await asyncio.sleep(pause_s(tries))
                tries += 1
                continue
            tries = 0
            if hinted:
                self._dispatcher.ask(0)
                await asyncio.sleep(GATHER_S)

    async def renew(self) -> None:
        """Prolong all leases three times in their life; not those of a worker that should have been killed long ago.

        After a failure sooner: when Redis is back, renewals come before anybody's doubt is old enough to reap.
        """
        tries = 0
        while True:
            await asyncio.sleep(min(self._lease_ms / 3000, pause_s(tries - 1)) if tries else self._lease_ms / 3000)
            dispatcher, fleet, now_ns = self._dispatcher, self._dispatcher.fleet, time.monotonic_ns()
            guess_ms = self._hang_ms
            runs = [run for run in dispatcher.held if run.link is None or fleet.gets_on(run.link, now_ns, guess_ms)]
            if not runs:
                continue
            try:
                pairs = [(run.claim.id, run.claim.token) for run in runs]
                verdicts = await self._queue.renew(pairs, lease_ms=self._lease_ms)
            except QueueError as error:
                dispatcher.ledger.redis(error)
                tries += 1
                continue
            tries = 0
            for run, verdict in zip(runs, verdicts, strict=True):
                dispatcher.overruled(run, verdict)

    async def reap(self) -> None:
        """Sweep what nobody holds any more. A lease is reaped when it was first seen expired a renewal's time ago."""
        seen: dict[Suspect, float] = {}
        while True:
            rest_s = self.rest_s(REAP_S, QUIET_REAP_S)
            await asyncio.sleep(rest_s * random.uniform(0.9, 1.1))  # noqa: S311 (jitter)
            before_s = time.monotonic() - self._lease_ms / 3000
            try:
                doubted = [each for each, at_s in seen.items() if at_s <= before_s]
                reaped = await self._queue.reap(self._owner, doubted, tiers=TIERS)
                self._dispatcher.ledger.reaped(reaped)
                sweeps = 1
                while reaped.more and sweeps < MOST_SWEEPS:
                    reaped, sweeps = await self._queue.reap(self._owner, tiers=TIERS), sweeps + 1
                    self._dispatcher.ledger.reaped(reaped)
            except QueueError as error:
                self._dispatcher.ledger.redis(error)
                seen = {}  # Redis did not answer in between: doubt again from the start
                continue
            self.notice(bool(reaped.suspects))
            now_s = time.monotonic()
            seen = {suspect: seen.get(suspect, now_s) for suspect in reaped.suspects}

    async def survey(self) -> None:
        """This host's name among the living; who else lives; who waits, and to them where they stand."""
        while True:
            try:
                await self._survey()
                self._dispatcher.ledger.redis(None)
            except QueueError as error:
                self._dispatcher.ledger.redis(error)
                if isinstance(error, QueueFault):
                    self.surveyed.set()  # it does answer
            await asyncio.sleep(self.rest_s(SURVEY_S, QUIET_SURVEY_S))

    async def _survey(self) -> None:
        outlook, queue = self._dispatcher.outlook, self._queue
        identities = self._dispatcher.identities
        ready = self._dispatcher.fleet.ready
        workers = {tier: len(ready.get(tier, ())) or int(tier in outlook.asleep) for tier in self._tiers}
        services = {
            tier: replace(service, identity=(identities.own(tier) or [""])[-1], workers=workers.get(tier, 0))
            for tier, service in outlook.services(self._free()).items()
        }
        await queue.announce(Host(self._owner, services), HOST_TTL_S)
        hosts, depths = await asyncio.gather(queue.hosts(), queue.depths(QUEUES))
        outlook.surveyed(depths, hosts)
        self.surveyed.set()
        self._dispatcher.ledger.depths(depths)
        await self._count_kept()
        self.notice(any(any(depth.by_class) for depth in depths))
        for depth in depths:
            if depth.queue in self._tiers and any(depth.by_class):
                await queue.push(depth.queue)
                self._dispatcher.want(depth.queue)
        await self._pass_complaints()
        await queue.check()

    async def _count_kept(self) -> None:
        """What the exact cache holds, now and then: nobody is in a hurry to know."""
        if (now_s := time.monotonic()) >= self._count_s:
            self._count_s = now_s + KEPT_S
            self._dispatcher.ledger.exact_cache(*await self._queue.kept())

    async def _pass_complaints(self) -> None:
        """To the vectors process; while that is away they stay in Redis."""
        vectors = self._dispatcher.vectors
        if not vectors.linked:
            return
        complaints = await self._queue.complaints()
        self._dispatcher.ledger.complained(len(complaints))
        for complaint in complaints:
            vectors.tell(Complain(complaint.entry, complaint.score))

    async def sample(self) -> None:
        """Ask where a job stands that was just routed: its prediction is held against the truth when it starts."""
        outlook = self._dispatcher.outlook
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(outlook.arrived.wait(), self.rest_s(SURVEY_S, QUIET_SURVEY_S))
            late = outlook.forecast.overdue(time.monotonic())
            with contextlib.suppress(QueueError):  # the survey reports it
                for id in filter(None, (outlook.newcomer, late)):
                    outlook.placed(await self._queue.position(id), id)
            await asyncio.sleep(SAMPLE_S)
            outlook.newcomer = ""
            outlook.arrived.clear()

    def _free(self) -> dict[str, int]:
        """Places for jobs of class normal, in every tier that has workers."""
        ready = self._dispatcher.fleet.ready
        return {tier: sum(link.load.room(Priority.NORMAL) for link in links) for tier, links in ready.items() if links}
