"""All stages · dispatcher · one trace a job, made of what is known when a stretch of its life is over.

    when it is routed, hit or refused    wait for routing · route · cache lookup
    when an attempt is over              wait in queue · attempt (prepare · prefill · decode) · settle
    when the job is over                 the job itself, which all of these are parts of

Off (no exporter): nothing is made and nothing remembered. A mistake in here costs spans, never a job. What the queue
ends by itself, while no dispatcher has it, ends without that last span.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from metamusesd.dispatcher.run import End, Run
from metamusesd.dispatcher.spans import Story, hit_of, outcome_of, problem_of, request_of
from metamusesd.errors import MetamusesdError
from metamusesd.log import Logger
from metamusesd.queues.base import Claim, Fault, Requeue, Settlement, Verdict
from metamusesd.route import Route
from metamusesd.tracing import Exporter, Span, Trace, trace_of
from metamusesd.wire import Refused

MOST_REMEMBERED = 10_000
TELL_S = 30.0
T = TypeVar("T")


class Traces:
    """Makes the spans of one dispatcher. `share`: of the jobs, where no producer has decided. `max_crashes`: of the
    queue, which does not say when it buries a job."""

    def __init__(self, exporter: Exporter | None, share: float, log: Logger, max_crashes: int = 3) -> None:
        self._exporter, self._share, self._log, self._max_crashes = exporter, share, log, max_crashes
        self._analysed: dict[str, tuple[Route, int, int]] = {}  # begun and done, monotonic
        self._ready_ns: dict[str, int] = {}  # since when a job waits for its tiers
        self._told, self._tell_s = 0, 0.0

    def analysed(self, claim: Claim, route: Route, started_ns: int) -> None:
        """Stage 3 is over."""
        if self._exporter is not None:
            _remember(self._analysed, claim.id, (route, started_ns, time.monotonic_ns()))

    def forwarded(self, claim: Claim) -> None:
        """Stages 4 and 5: no cache had it; it waits for its tiers."""
        if self._exporter is not None:
            _remember(self._ready_ns, claim.id, time.monotonic_ns())
            self._make(claim, self._arrival)

    def answered(self, claim: Claim, end: Settlement) -> None:
        """A cache had it: the end of the job."""

        def make(claim: Claim, trace: Trace) -> list[Span]:
            now_ns = time.monotonic_ns()
            story = Story(claim, trace, self._begun_ns(claim))
            return [*self._arrival(claim, trace), story.whole(hit_of(end), "", now_ns)]

        self._make(claim, make)

    def refused(self, claim: Claim, error: MetamusesdError) -> None:
        """Nobody can serve it: the end of the job."""

        def make(claim: Claim, trace: Trace) -> list[Span]:
            story = Story(claim, trace, self._begun_ns(claim))
            whole = story.whole({"metamusesd.state": "failed"}, error.code, time.monotonic_ns())
            return [*self._arrival(claim, trace), whole]

        self._make(claim, make)

    def ended(self, run: Run, end: End, outcome: Settlement | Requeue | None, verdict: Verdict, ended_ns: int) -> None:
        """Stage 10, after the queue has answered. `ended_ns`: when the attempt was over, monotonic."""
        if self._exporter is None:
            return
        now_ns, since_ns = time.monotonic_ns(), self._ready_ns.pop(run.claim.id, 0)
        if isinstance(outcome, Requeue) and verdict is Verdict.OK:
            _remember(self._ready_ns, run.claim.id, now_ns)
        state = self._state(run, end, outcome, verdict)
        problem = problem_of(end, outcome, state)

        def make(claim: Claim, trace: Trace) -> list[Span]:
            story = Story(claim, trace, run.claimed_ns)
            spans = (
                [] if not since_ns and claim.attempt > 1 else [story.queued(run.tier, since_ns or story.submitted_ns)]
            )
            spans += [*story.attempt(run, end, problem, ended_ns), story.settled(ended_ns, now_ns)]
            if state:
                spans.append(story.whole(outcome_of(run, end, state), problem, now_ns))
            return spans

        if type(end) is not Refused:  # that one never began
            self._make(run.claim, make)

    def tell(self) -> None:
        """Say what was lost, if anything was since the last time. Call it often: it says so seldom."""
        if self._exporter is None or time.monotonic() < self._tell_s:
            return
        lost, problem = self._exporter.lost()
        if lost != self._told:
            self._tell_s = time.monotonic() + TELL_S
            self._log.warning("traces are lost", spans=lost - self._told, problem=problem)
            self._told = lost

    def _state(self, run: Run, end: End, outcome: Settlement | Requeue | None, verdict: Verdict) -> str:
        """How the job ended, as far as this dispatcher was told; empty: it goes on."""
        if isinstance(outcome, Settlement) and verdict is Verdict.OK:
            return outcome.state
        said = end if outcome is None else verdict
        if said in (Verdict.CANCELLED, Verdict.EXPIRED):
            return str(said)
        buried = isinstance(outcome, Requeue) and outcome.fault is Fault.CRASH_ALONE and verdict is Verdict.OK
        return "dead" if buried and run.claim.crashes + 1 >= self._max_crashes else ""

    def _make(self, claim: Claim, make: Callable[[Claim, Trace], list[Span]]) -> None:
        if self._exporter is None:
            return
        try:
            request = request_of(claim)
            traceparent = request.traceparent if request is not None else None
            trace = trace_of(claim.id, claim.submitted_ms, traceparent, self._share)
            if trace.sampled:
                self._exporter.put(trace, make(claim, trace))
        except Exception as error:
            self._log.error("a trace could not be made", job=claim.id, problem=f"{type(error).__name__}: {error}")
        self._analysed.pop(claim.id, None)

    def _arrival(self, claim: Claim, trace: Trace) -> list[Span]:
        known = self._analysed.get(claim.id)
        if known is None:
            return []
        route, begun_ns, routed_ns = known
        return Story(claim, trace, begun_ns).arrival(route, routed_ns, time.monotonic_ns())

    def _begun_ns(self, claim: Claim) -> int:
        known = self._analysed.get(claim.id)
        return known[1] if known is not None else time.monotonic_ns()


def _remember(memory: dict[str, T], id: str, what: T) -> None:
    """Jobs that others went on with are forgotten with all the others, when there are too many."""
    if len(memory) >= MOST_REMEMBERED:
        memory.clear()
    memory[id] = what
