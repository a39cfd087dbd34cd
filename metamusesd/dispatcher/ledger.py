"""All stages · dispatcher · what is written down for people: metrics, the dispatcher's row of the board, the log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from metamusesd.board import Board, RedisTrouble
from metamusesd.dispatcher.chronicle import Chronicle
from metamusesd.dispatcher.escalation import REASON as ESCALATED
from metamusesd.dispatcher.run import End, Run
from metamusesd.errors import MetamusesdError, QueueError, QueueFault, QueueRefused, QueueUnavailable
from metamusesd.job import Priority
from metamusesd.log import Logger
from metamusesd.metrics import MetricsPage
from metamusesd.queues.base import Append, Claim, Depth, Fault, Reaped, Requeue, Settlement, Verdict
from metamusesd.route import Route, read_route
from metamusesd.tiers import GENERAL_TIERS
from metamusesd.wire import Finished

FAULT_SHOWN_NS = 5_000_000_000  # so long after the last one; who meets it again shows it again
LEASES_NS = 1_000_000_000
_CRASHES = (Fault.CRASH, Fault.CRASH_ALONE, Fault.KILLED)
_CLASSES = {priority.value: priority.name.lower() for priority in Priority}


class Ledger:
    """Counts and writes; decides nothing. `max_crashes`: of the queue; it does not say when it buries a job."""

    def __init__(self, board: Board, log: Logger, max_crashes: int = 3) -> None:
        self.redis_ok = False
        self.claims = self.settled = self.faults = 0
        self._board, self._log, self._max_crashes = board, log, max_crashes
        self._chronicle = Chronicle(log, max_crashes)
        self._trouble, self._fault_ns = RedisTrouble.UNREACHABLE, 0
        self._leases_ns, self._had_leases = 0, True  # a dispatcher before us may have left some
        self._page = MetricsPage(board.metric_words)

    def claimed(self, claim: Claim) -> None:
        """Stage 2."""
        self.claims += 1
        self._page.count("claims_total", claim.queue)
        if claim.aged:
            self._page.count("aged_claims_total", claim.queue)

    def refused(self, claim: Claim, error: MetamusesdError) -> None:
        """A body that nobody can serve."""
        self.settled += 1
        self._page.count("requests_total", "failed")
        self._page.count("refusals_total", error.code)
        self._chronicle.refused(claim, error)

    def routed(self, route: Route) -> None:
        """Stage 3: again for a job that is routed again."""
        self._page.count("requests_routed_total", f"{route.domain}/{route.complexity}")

    def looked_up(self, outcome: str, where: str, started_ns: int = 0) -> None:
        """Stage 4: a hit, a miss, refused (something was near), skipped or failed."""
        label = f"{outcome}/{where}"
        self._page.count("cache_lookups_total", label)
        if started_ns:
            self._page.observe("cache_lookup_seconds", label, (time.monotonic_ns() - started_ns) / 1e9)

    def lookup_failed(self, error: Exception) -> None:
        """A mistake of ours; the job went on as a miss, or its answer was not kept."""
        self._page.count("cache_lookups_total", "failed/failed")
        self._log.error("the cache stumbled", problem=f"{type(error).__name__}: {error}")

    def kept(self, cache: str) -> None:
        """Stage 10: a cache has learnt an answer."""
        self._page.count("cache_kept_total", cache)

    def complained(self, count: int) -> None:
        """So many hits were reported as wrong."""
        self._page.count("cache_complaints_total", amount=count)

    def answered(self, claim: Claim, end: Settlement) -> None:
        """A cache has ended this job."""
        self.settled += 1
        self._chronicle.answered(claim, end)
        self._page.count("requests_total", "done")
        self._page.count("request_success_total", "cache")

    def token(self, run: Run, now_ns: int) -> None:
        """One step's text."""
        if run.token_ns:
            label = f"{run.tier}/{_CLASSES[run.claim.priority]}"
            self._page.observe("inter_token_latency_seconds", label, (now_ns - run.token_ns) / 1e9)
        run.token_ns = now_ns

    def ended(self, run: Run, end: End, outcome: Settlement | Requeue | None, verdict: Verdict) -> None:
        """Stage 10, after the queue has answered."""
        if isinstance(outcome, Requeue):
            self._given_back(run, outcome)
            self._chronicle.given_back(run, end, outcome, verdict)
        elif outcome is None or verdict is not Verdict.OK:
            why = end if outcome is None else verdict
            if why is Verdict.CANCELLED:
                self._page.count("requests_total", "cancelled")
            self._chronicle.ended_elsewhere(run, why)
        else:
            self._settled(run, end, outcome)
            self._chronicle.settled(run, outcome)

    def _given_back(self, run: Run, outcome: Requeue) -> None:
        page, fault = self._page, outcome.fault
        page.count("request_restarts_total", "retry" if fault is Fault.ERROR else outcome.reason)
        if outcome.reason == ESCALATED:
            page.count("escalations_total", run.tier)
        if fault in _CRASHES:
            page.count("crashes_total", fault)
        if fault is Fault.CRASH_ALONE and run.claim.crashes + 1 >= self._max_crashes:
            page.count("requests_total", "dead")

    def _settled(self, run: Run, end: End, outcome: Settlement) -> None:
        self.settled += 1
        page, tier = self._page, run.tier
        label = f"{tier}/{_CLASSES[run.claim.priority]}"
        queued_s, ran_s = run.queued_ms / 1000, (time.monotonic_ns() - run.claimed_ns) / 1e9
        page.count("requests_total", outcome.state)
        page.observe("request_queue_time_seconds", label, queued_s)
        page.observe("e2e_request_latency_seconds", label, queued_s + ran_s)
        if run.first_ns:
            page.observe("time_to_first_token_seconds", label, queued_s + (run.first_ns - run.claimed_ns) / 1e9)
        if type(end) is Finished:
            page.count("prompt_tokens_total", tier, end.prompt_tokens)
            page.count("generation_tokens_total", tier, end.completion_tokens)
            page.count("prefix_cache_queries_total", tier, end.prompt_tokens)
            page.count("prefix_cache_hits_total", tier, end.cached_tokens)
            page.observe("request_prefill_time_seconds", label, end.prefill_ms / 1e3)
            page.observe("request_decode_time_seconds", label, end.decode_ms / 1e3)
            if end.error is None:
                page.count("request_success_total", end.reason)
                self._served(run)

    def _served(self, run: Run) -> None:
        """By whom, and by whom it was to be."""
        route = read_route(run.claim.route)
        wanted = (route.requested_tier or route.tiers[0]) if route is not None and route.tiers else ""
        self._page.count("requests_served_total", f"{wanted}/{run.tier}")
        if move := tier_move(wanted, run.tier):
            self._page.count("tier_moves_total", move)

    def reaped(self, reaped: Reaped) -> None:
        """One sweep, whoever had held the jobs."""
        for kind in ("requeued", "expired", "timed_out", "rerouted", "woken"):
            if ids := getattr(reaped, kind):
                self._page.count("reaped_total", kind, len(ids))
        self._chronicle.reaped(reaped)
        if reaped.expired:
            self._page.count("requests_total", "expired", len(reaped.expired))

    def leases(self, runs: Iterable[Run]) -> None:
        """What is held now, and which of it a worker has. Call it often: it looks once a second."""
        now_ns = time.monotonic_ns()
        if now_ns - self._leases_ns < LEASES_NS:
            return
        self._leases_ns = now_ns
        held, running = Counter[str](), Counter[str]()
        for run in runs:
            label = f"{run.tier}/{_CLASSES[run.claim.priority]}"
            held[label] += 1
            running[label] += run.link is not None
        if held or self._had_leases:
            self._page.set("leases_held", held)
            self._page.set("leases_running", running)
        self._had_leases = bool(held)

    def exact_cache(self, entries: int, size_bytes: int) -> None:
        """How much the exact cache holds; now and then."""
        self._page.set("cache_entries", {"": entries})
        self._page.set("cache_bytes", {"": size_bytes})

    # the board

    def started(self, pid: int, epoch: int) -> None:
        """Once, at boot."""
        now_ns = time.monotonic_ns()
        self._board.dispatcher.clear()
        self._board.dispatcher.write(beat_ns=now_ns, started_ns=now_ns, pid=pid, epoch=epoch, redis_since_ns=now_ns)

    def beat(self, running: int, workers: int, draining: bool, lag_ns: int) -> None:
        """Several times a second."""
        self._page.observe("dispatcher_loop_lag_seconds", "", lag_ns / 1e9)
        self._board.dispatcher.write(
            beat_ns=time.monotonic_ns(), running=running, workers=workers, draining=int(draining), loop_lag_ns=lag_ns,
            redis_ok=int(self.redis_ok), claims=self.claims, settled=self.settled, redis_trouble=self._troubles(),
            faults=self.faults,
        )  # fmt: skip

    def redis(self, error: QueueError | None) -> None:
        """Redis went (the reason) or came back (None). A fault is something else: it answers, with a script's error."""
        if isinstance(error, QueueFault):
            self._fault(error)
            return
        if error is not None:
            self._page.count("queue_errors_total", "refused" if isinstance(error, QueueRefused) else "unavailable")
        trouble = _trouble(error)
        if trouble == self._trouble and self.redis_ok == (error is None):
            return
        turned, self._trouble, self.redis_ok = self.redis_ok != (error is None), trouble, error is None
        if turned:
            self._board.dispatcher.write(redis_since_ns=time.monotonic_ns())
        self._board.dispatcher.write(redis_ok=int(self.redis_ok), redis_trouble=self._troubles())
        if error is None:
            self._log.info("redis answers")
        else:
            self._log.warning("redis cannot be asked", trouble=trouble.name.lower(), problem=error.message)

    def given_up(self, entry: Append | Settlement | Requeue, error: MetamusesdError) -> None:
        """What the queue cannot take for this one job; the rest was written."""
        self.faults += 1
        self._page.count("queue_errors_total", "fault")
        what = type(entry).__name__.lower()
        field = getattr(error, "field", "")
        self._log.error("given up", job=entry.id, what=what, field=field, problem=error.message)

    def _fault(self, error: QueueFault) -> None:
        now_ns = time.monotonic_ns()
        if now_ns - self._fault_ns > FAULT_SHOWN_NS:
            self._log.error("a key of a wrong type is in the way", problem=error.message)
        self._fault_ns = now_ns
        if not self.redis_ok:
            self._trouble = RedisTrouble.NONE  # it does answer
        self.faults += 1
        self._page.count("queue_errors_total", "fault")

    def _troubles(self) -> RedisTrouble:
        faulty = self._fault_ns and time.monotonic_ns() - self._fault_ns < FAULT_SHOWN_NS
        return RedisTrouble.FAULT if faulty and self._trouble is RedisTrouble.NONE else self._trouble

    def depths(self, depths: list[Depth]) -> None:
        """Once a second."""
        values: dict[str, int] = {}
        for depth in depths:
            low, normal, high, critical = depth.by_class
            queue = depth.queue
            values |= {f"{queue}.low": low, f"{queue}.normal": normal, f"{queue}.high": high}
            values |= {f"{queue}.critical": critical, f"{queue}.oldest_ms": max(0, depth.oldest_ms)}
        self._board.queues.write(**values)
        self._board.dispatcher.write(queues_ns=time.monotonic_ns())


def tier_move(wanted: str, served: str) -> str:
    """How a job came to another tier than the wanted one; nothing when it did not, or nobody knows what was wanted."""
    if not wanted or wanted == served:
        return ""
    if wanted in GENERAL_TIERS and served in GENERAL_TIERS:
        return "upgrade" if GENERAL_TIERS.index(served) > GENERAL_TIERS.index(wanted) else "downgrade"
    return "sideways"


def _trouble(error: QueueError | None) -> RedisTrouble:
    if error is None:
        return RedisTrouble.NONE
    if isinstance(error, QueueRefused):
        return RedisTrouble.POLICY
    name = error.trouble.upper() if isinstance(error, QueueUnavailable) else ""
    return RedisTrouble[name] if name in RedisTrouble.__members__ else RedisTrouble.UNREACHABLE
