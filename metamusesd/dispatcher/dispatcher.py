"""Stages 2 to 10 · dispatcher · read this first: what happens to a job between its claim and its end.

    claim from ingress ─► analyse ─► look up ─► forward to its tiers ─┐   (pump.py: one claim call does both)
              a hit: settle ◄────────┘                                │
    claim from a tier  ◄──────────────────────────────────────────────┘
        └► process:  pick a worker ─► send ─► stream its tokens ─► settle

Promise: at least once, one visible result. Every claim ends in exactly one settle, requeue or verdict of somebody else;
the queue's token decides when two want to end the same job. One loop, one thread: nothing here needs a lock.
No lease is ours without our knowing: a claim whose answer was lost is repeated with its nonce until it is answered, and
what a claim took that was cut off by our death is taken over by the next nonce of this instance.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from metamusesd.board import Board
from metamusesd.dispatcher.alone import Alone
from metamusesd.dispatcher.caching import Rules
from metamusesd.dispatcher.embedding import Embedding
from metamusesd.dispatcher.endings import Retries, conclude, refusal
from metamusesd.dispatcher.escalation import Escalation
from metamusesd.dispatcher.fleet import Fleet
from metamusesd.dispatcher.identities import Identities
from metamusesd.dispatcher.inquiry import Inquiry
from metamusesd.dispatcher.keeping import Keeping
from metamusesd.dispatcher.ledger import Ledger
from metamusesd.dispatcher.links import Hooks, Link
from metamusesd.dispatcher.lookup import Lookup, Routing
from metamusesd.dispatcher.outbox import Outbox
from metamusesd.dispatcher.outlook import Outlook
from metamusesd.dispatcher.pump import Pump
from metamusesd.dispatcher.router import RoutingRules, TierView, route
from metamusesd.dispatcher.run import Back, End, Run
from metamusesd.dispatcher.scheduling import Scheduling
from metamusesd.dispatcher.traces import Traces
from metamusesd.dispatcher.vectors_link import VectorsLink
from metamusesd.errors import ContextOverflow, DeadlineUnmeetable, MetamusesdError, NoCapacity, QueueError, UnknownTier
from metamusesd.job import InferenceRequest, parse_request
from metamusesd.log import Logger
from metamusesd.queues.base import INGRESS, Claim, Queue, Requeue, Routed, Settlement, Verdict, Want
from metamusesd.route import encode_route
from metamusesd.wire import Finished, Refused, Token

GIVE_BACK_S = 3.0  # at the end of a drain
REMEMBERED_ROUTES = 10_000


class Dispatcher:
    """Holds the claimed jobs of one host. `boot` gives it links and runs its loops."""

    def __init__(
        self, queue: Queue, board: Board, tiers: list[TierView], owner: str, log: Logger, *, lease_ms: int = 15_000,
        max_crashes: int = 3, retries: Retries | None = None, rules: Rules | None = None,
        routing: RoutingRules = RoutingRules(),  # noqa: B008 (frozen)
        defaults: Mapping[str, Mapping[str, float]] | None = None, vectors_lost: Callable[[int], None] | None = None,
        traces: Traces | None = None, wanted: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        names = [tier.name for tier in tiers]
        self.held: set[Run] = set()
        self.ledger = Ledger(board, log, max_crashes)
        self.traces = traces or Traces(None, 0.0, log)
        self.outbox = Outbox(queue, self.overruled, self.ledger.redis, self.ledger.given_up)
        self.outlook = Outlook(owner, tiers)
        self.inquiry = Inquiry(queue, self.outlook.hosts, self._look_again)
        self.pump = Pump(
            queue, owner, lease_ms, names, self._wants, self.take, self.ledger.redis, self.outlook.heard,
            self.outlook.hosts.shared,
        )  # fmt: skip
        hooks = Hooks(_nothing, self.stream, self._ended, _nothing, _nothing, self._changed)
        self.fleet = Fleet(board, names, hooks, self.pump.freed, log)
        rules = rules or Rules()
        self.identities = Identities(self.outlook.hosts, defaults or {})
        self.vectors = VectorsLink(rules.budget_ms, vectors_lost or (lambda epoch: None), log)
        self.embedding = Embedding(self.vectors, wanted=rules.semantic, model=rules.embedder)
        self.scheduling = Scheduling(self.fleet, self.outlook, self.pump.may_wait, routing.margin)
        self.escalation = Escalation(routing, self.outlook, self.scheduling.served)
        self.lookup = Lookup(
            queue, rules, self.identities, self.vectors, self._forward, self._hit, self.pump.wake, self.ledger
        )
        self.keeping = Keeping(rules, self.identities, self.vectors, self.ledger)
        self.alone = Alone(self.fleet, lambda run, link: link.send(run))
        self.emptied = asyncio.Event()
        self.emptied.set()
        self._queue, self._routing = queue, routing
        self._wanted = wanted
        self._log, self._alone_after = log, max(1, max_crashes - 1)
        self._retries, self._draining = retries or Retries(), False
        self._tasks: set[asyncio.Task[None]] = set()
        self._too_long: dict[str, int] = {}  # jobs on their way to a tier with a larger context than this
        self._route_ms: dict[str, float] = {}  # of jobs that were routed here and not claimed for a worker yet

    def __repr__(self) -> str:
        return f"<Dispatcher held={len(self.held)} {self.fleet} {self.pump}>"

    async def process(self, claim: Claim) -> None:
        """The journey of one job that was claimed for a worker, to its end."""
        run = self.hold(claim)
        try:
            if run.overdue:
                run.finish(Verdict.EXPIRED)
            elif claim.crashes >= self._alone_after:
                self.alone.join(run)  # workers died under this job: the next crash shall be its own
            elif (link := self.scheduling.place(run)) is not None:
                link.send(run)
            else:
                run.finish(Back("refused"))
            end = await run.end  # meanwhile `stream` passes its tokens on
            await self.settle(run, end)
        finally:
            self.release(run)

    async def settle(self, run: Run, end: End) -> None:
        """Write the end of a run, once; its lease is renewed until that is done."""
        ended_ns = time.monotonic_ns()
        try:
            outcome = self.escalation.again(run, end) or conclude(
                run, end, time.monotonic_ns(), self._retries, larger=self._overflowed(run, end)
            )
        except Exception as error:  # a bug of ours: without an end the job would run again and again
            outcome = refusal(run.claim, MetamusesdError(f"{type(error).__name__}: {error}"))
        await self._write(run, end, self.keeping.prepare(run, outcome), ended_ns)

    async def _write(self, run: Run, end: End, outcome: Settlement | Requeue | None, ended_ns: int) -> None:
        """Put it into the queue, and tell everybody who wants to know. None: there is nothing to write any more."""
        verdict = await self.outbox.put(outcome) if outcome is not None else Verdict.LOST
        self.keeping.settled(run, outcome, verdict)
        self.ledger.ended(run, end, outcome, verdict)
        self.traces.ended(run, end, outcome, verdict, ended_ns)

    def take(self, claim: Claim) -> None:
        """Stage 2: a claim has arrived."""
        self.ledger.claimed(claim)
        if claim.queue == INGRESS:
            self.analyse(claim)
        else:
            self._start(self.process(claim))

    def analyse(self, claim: Claim, *, again: bool = False) -> None:
        """Stage 3: name the tiers that may serve it, and look it up; what nobody can serve ends here. `again`: who
        lives was just asked because of it."""
        started_ns = time.monotonic_ns()
        try:
            request = parse_request(claim.body)
            if request.kind == "embed":
                self._start(self._embed(claim, request))
                return
            found = route(request, self._large_enough(claim.id), self._routing)
        except UnknownTier as error:
            if again:
                self._refuse(claim, error)
            else:
                self.inquiry.put(claim)
            return
        except Exception as error:  # a bug of ours must not end the dispatcher, to meet the next one with the same job
            known = error if isinstance(error, MetamusesdError) else MetamusesdError(f"{type(error).__name__}: {error}")
            self._refuse(claim, known)
            return
        self.ledger.routed(found)
        self.traces.analysed(claim, found, started_ns)
        self.lookup.put(Routing(claim, request, found, (time.monotonic_ns() - started_ns) / 1e6))

    async def _embed(self, claim: Claim, request: InferenceRequest) -> None:
        """Stage 8 of a job that needs no tier: its vectors."""
        run = self.hold(claim)
        try:
            outcome = await self.embedding.outcome(run, request)
            end = run.end.result() if run.end.done() else Back("refused")
            await self._write(run, end, outcome, time.monotonic_ns())
        finally:
            self.release(run)

    def _forward(self, job: Routing, flight: str) -> None:
        """Into the queues of its tiers; with a flight, behind an equal job that is under way, if there is one. What
        cannot be computed in time ends here."""
        claim = job.claim
        if self._draining:  # nobody would forward it
            self.outbox.put(Requeue(claim.id, claim.token, "drain"))
            return
        try:
            self.outlook.check(claim, job.request, job.route.tiers)
        except DeadlineUnmeetable as error:
            self._refuse(claim, error)
            return
        if len(self._route_ms) >= REMEMBERED_ROUTES:
            self._route_ms.clear()
        self._route_ms[claim.id] = job.route_ms
        found = self.scheduling.forward(claim, job.request, job.route)
        self.outlook.forwarded(claim, found.queued, flight)
        for tier in found.queued:
            self.want(tier)
        self.traces.forwarded(claim)
        self.pump.forward(Routed(claim.id, claim.token, found.queued, encode_route(found), flight))

    def want(self, tier: str) -> None:
        """A job waits there: if it sleeps, it shall come."""
        if tier in self.outlook.asleep and self._wanted is not None:
            self._wanted(tier)

    def _hit(self, claim: Claim, end: Settlement) -> None:
        """A cache has the answer: that is the end, whatever the tiers are doing."""
        self.outbox.put(end)
        self.ledger.answered(claim, end)
        self.traces.answered(claim, end)

    def _refuse(self, claim: Claim, error: MetamusesdError) -> None:
        self.outbox.put(refusal(claim, error))
        self.ledger.refused(claim, error)
        self.traces.refused(claim, error)

    def _look_again(self, claim: Claim) -> None:
        if self._draining:
            self.outbox.put(Requeue(claim.id, claim.token, "drain"))
            return
        self.analyse(claim, again=True)
        self.pump.wake()

    def hold(self, claim: Claim) -> Run:
        """From here on its lease is renewed."""
        run = Run(claim, asyncio.get_running_loop())
        run.route_ms = self._route_ms.pop(claim.id, 0.0)
        self.held.add(run)
        self.emptied.clear()
        return run

    def release(self, run: Run) -> None:
        """No renewal any more: if its end was not written, the lease runs out and somebody reaps it."""
        self.held.discard(run)
        if run.link is not None:
            run.link.cancel(run)
        self.outbox.forget(run)
        if not self.held:
            self.emptied.set()

    def stream(self, run: Run, token: Token) -> None:
        """Stage 9: one step's text of one run."""
        now_ns = time.monotonic_ns()
        if not run.first_ns:
            run.first_ns = now_ns
            if run.link is not None:
                run.link.computed(run)
        self.ledger.token(run, now_ns)
        offset = run.take(token)
        if token.text and run.claim.stream:
            run.asked_ns = now_ns
            self.outbox.append(run, offset, token.text, token.tokens)

    def overruled(self, run: Run, verdict: Verdict) -> None:
        """The queue says that this run is not ours to finish: cancelled, past its deadline, or lost."""
        if verdict is Verdict.RAISED:
            self._start(self._raise(run))
        elif verdict is not Verdict.OK and not run.end.done():
            self._drop(run, verdict)

    async def _raise(self, run: Run) -> None:
        """A job of a higher class follows it. That it cannot be asked which costs the class, and nothing else."""
        with contextlib.suppress(QueueError):
            view = await self._queue.view(run.claim.id)
            if view is not None and run.link is not None:
                run.link.promote(run, view.priority)

    def ask(self, silent_ns: int) -> None:
        """Ask for the verdict on every run that has sent no text for so long."""
        before_ns = time.monotonic_ns() - silent_ns
        for run in self.held:
            if run.asked_ns < before_ns and not run.end.done():
                run.asked_ns = time.monotonic_ns()
                self.outbox.append(run, 0, "", 0)

    async def drain(self, within_s: float) -> None:
        """Claim no more; finish what can be finished in time, give back the rest, unburnt.

        Raises TimeoutError when Redis did not take that in time: the next dispatcher takes it over.
        """
        self._draining = True
        self.pump.stop()
        try:
            async with asyncio.timeout(within_s):
                await self._emptied()
        except TimeoutError:
            for run in list(self.held):
                self._drop(run, Back("drain"))
        async with asyncio.timeout(GIVE_BACK_S):
            await self._emptied()

    async def retire(self, row: int, epoch: int, within_s: float) -> bool:
        """This worker gets nothing more; returns when it has finished what it has, or when that was given back. False:
        it was resumed meanwhile."""
        link = self.fleet.retire(row, epoch)
        if link is None:
            return True
        turn = link.retirements
        if not self.fleet.ready.get(link.tier):
            self.alone.give_back(link.tier)
        try:
            async with asyncio.timeout(within_s):
                await link.idle.wait()
        except TimeoutError:
            for run in list(link.runs.values()) if link.retired and link.retirements == turn else ():
                self._drop(run, Back("retired"))
        return link.retired and link.retirements == turn

    async def _emptied(self) -> None:
        """No claim is under way, nothing is held, and every end that was put down is written."""
        await self.pump.stopped.wait()
        await self.inquiry.answered()
        await self.lookup.answered()
        await self.emptied.wait()
        await self.outbox.written.wait()

    def _wants(self) -> list[Want]:
        return self.fleet.wants()

    def _overflowed(self, run: Run, end: End) -> bool:
        """Whether the prompt was too long for its tier, and another one that it may use takes more. Remembers that."""
        if type(end) is not Finished or end.error is None or end.error.get("code") != ContextOverflow.code:
            return False
        request, contexts = parse_request(run.claim.body), self.fleet.contexts()
        had = contexts.get(run.tier, 0)
        if request.tier or request.model or max(contexts.values(), default=0) <= had:
            return False
        if len(self._too_long) >= REMEMBERED_ROUTES:
            self._too_long.clear()
        self._too_long[run.claim.id] = had
        return True

    def _large_enough(self, id: str) -> Sequence[TierView]:
        """The tiers for the router: all, but for a prompt that was too long for one before."""
        had, tiers = self._too_long.pop(id, 0), self.outlook.hosts.views
        if not had:
            return tiers
        contexts = self.fleet.contexts()
        return [tier for tier in tiers if contexts.get(tier.name, 0) > had] or tiers

    def _drop(self, run: Run, end: End) -> None:
        run.finish(end)
        if run.link is not None:
            run.link.cancel(run)
            self.fleet.freed(run.link)

    def _ended(self, run: Run, end: Finished | Refused) -> None:
        run.finish(end)
        if type(end) is Finished:
            self.outlook.ran(run, end)
            self.scheduling.ran(run, end)
        elif run.link is not None:
            run.idle_refusal = not run.link.runs and end.reason == NoCapacity.code
            self.fleet.refused(run.link, run.claim.priority)

    def _changed(self, link: Link) -> None:
        ready = self.fleet.ready.get(link.tier, ())
        if ready or link.tier not in self.outlook.asleep:  # who sleeps comes back with the model that it had
            self.identities.changed(link.tier, [each.hello for each in ready if each.hello is not None])
        self.alone.changed(link)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("a job's journey failed", problem=f"{type(error).__name__}: {error}")


def _nothing(_: Link) -> None:
    """The fleet puts its own hook in this place."""
