"""Stage 10 · dispatcher · from how a run ended to what is written about its job. Pure, but for the jitter.

Finished, no error    done                      Lost        requeue: a crash (alone or not), killed, or nothing
… by its deadline     expired                   Back        requeue, unburnt
… retryable error     requeue after a pause,    Refused     requeue, unburnt; by an idle worker: as a retryable error
                      so often; then failed     Verdict     nothing: somebody else has decided; `expired`: settle so
… prompt too long     reroute to a larger one, or failed
… another error       failed

A job that must not restart, and whose reader has text of it, is failed instead of given back.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from metamusesd.dispatcher.run import Back, End, Lost, Run
from metamusesd.errors import ContextOverflow, InvalidRequest, JobExpired, MetamusesdError, NoCapacity, WorkerLost
from metamusesd.job import Result, Timings, Usage, encode_result, parse_request
from metamusesd.queues.base import Claim, Fault, Requeue, Settlement, Verdict
from metamusesd.route import read_route
from metamusesd.wire import Finished, Refused

MOST_KILLS = 10  # more than so many kills from outside are no accident: the job kills its own worker
EARLY = ("taking jobs", "preparing", "prefill")  # phases of a worker in which a job without a token may have been


@dataclass(frozen=True, slots=True)
class Retries:
    """How a retryable error of the engine is answered."""

    most: int = 3
    first_s: float = 0.5
    longest_s: float = 30.0

    def pause_ms(self, retries: int) -> int:
        """Before the next try, after so many: doubled each time, with jitter."""
        pause_s = min(self.first_s * 2.0 ** min(retries, 32), self.longest_s)
        return int(1000 * pause_s * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)


def conclude(run: Run, end: End, now_ns: int, retries: Retries, *, larger: bool = False) -> Settlement | Requeue | None:
    """What to tell the queue; None: nothing. `larger`: another tier that may serve it has a larger context."""
    outcome = _conclude(run, end, now_ns, retries, larger)
    if isinstance(outcome, Requeue) and run.chars and not _may_restart(run.claim.body):
        return _settle(run, now_ns, "failed", error=WorkerLost().to_dict())
    return outcome


def _conclude(run: Run, end: End, now_ns: int, retries: Retries, larger: bool) -> Settlement | Requeue | None:
    claim = run.claim
    match end:
        case Finished(error=None, reason="deadline") | Verdict.EXPIRED:
            return _settle(run, now_ns, "expired", error=JobExpired().to_dict())
        case Finished(error=None, reason="cancelled"):
            return Requeue(claim.id, claim.token, "lost")  # nobody asked for it here: run it again
        case Finished(error=None):
            return _settle(run, now_ns, "done", end)
        case Finished(error={"code": ContextOverflow.code}) if larger:
            return Requeue(claim.id, claim.token, ContextOverflow.code, reroute=True)
        case Finished(error=error) if error and error.get("retryable") and claim.retries < retries.most:
            reason, pause_ms = str(error.get("code", "error")), retries.pause_ms(claim.retries)
            return Requeue(claim.id, claim.token, reason, Fault.ERROR, pause_ms)
        case Finished(error=error):
            return _settle(run, now_ns, "failed", end, error)
        case Lost(crashed=crashed, killed=killed, reason=reason) if crashed or (killed and _kills(claim) >= MOST_KILLS):
            fault = Fault.CRASH_ALONE if run.alone else Fault.CRASH
            return Requeue(claim.id, claim.token, reason, fault, evidence=_evidence(run, end))
        case Lost(killed=killed, reason=reason):
            return Requeue(claim.id, claim.token, reason, Fault.KILLED if killed else Fault.NONE)
        case Refused() if run.idle_refusal:
            error = NoCapacity(f"{end.reason}, though its worker had nothing else").to_dict()
            return _conclude(run, Finished(end.handle, error=error), now_ns, retries, larger)
        case Refused(reason=reason):
            return Requeue(claim.id, claim.token, reason)
        case Back(reason=reason, delay_ms=delay_ms):
            return Requeue(claim.id, claim.token, reason, delay_ms=delay_ms)
    return None


def _kills(claim: Claim) -> int:
    """Attempts that ended with a worker killed from outside."""
    return claim.attempt - 1 - claim.crashes - claim.retries


def refusal(claim: Claim, error: MetamusesdError) -> Settlement:
    """The end of a job that cannot be served at all."""
    result = Result(request_id=claim.id, state="failed", attempt=claim.attempt, error=error.to_dict())
    return Settlement(claim.id, claim.token, "failed", encode_result(result))


def _evidence(run: Run, lost: Lost) -> bytes:
    """What is known of a crash, for `metamusesd dead show`: how the worker ended, and what this job did in it."""
    told = lost.evidence
    phase = "decode" if run.first_ns else told.get("phase") if told.get("phase") in EARLY else "prefill"
    return msgspec.json.encode(
        {
            "worker": run.link.worker if run.link else "", **told, "phase": phase, "attempt": run.claim.attempt,
            "prompt_chars": _prompt_chars(run.claim.body), "prompt_tokens": run.prompt_estimate, "tokens": run.tokens,
            "neighbours": run.neighbours, "alone": run.alone, "at_ms": time.time_ns() // 1_000_000,
        }
    )  # fmt: skip


def _prompt_chars(body: bytes) -> int:
    try:
        request = parse_request(body)
    except InvalidRequest:
        return len(body)
    texts = [message.content for message in (*request.context, *(request.messages or ()))]
    return sum(len(text) for text in (*texts, request.user_query or "", request.persona or ""))


def _may_restart(body: bytes) -> bool:
    try:
        return parse_request(body).on_restart == "restart"
    except InvalidRequest:
        return True


def _settle(
    run: Run, now_ns: int, state: str, end: Finished | None = None, error: dict[str, Any] | None = None
) -> Settlement:
    claim, hello = run.claim, run.link.hello if run.link else None
    usage = Usage()
    if end is not None:
        usage = Usage(
            prompt_tokens=end.prompt_tokens, completion_tokens=end.completion_tokens, cached_tokens=end.cached_tokens
        )
    timings, route, note = _timings(run, now_ns), read_route(claim.route), None
    if route is not None:
        route, note = msgspec.structs.replace(route, lookup=None, placed=run.placed), route.lookup
        if note is not None and note.kind == "flight":  # whom it was to follow has ended before it came
            note = msgspec.structs.replace(note, kind="miss")
    result = Result(
        request_id=claim.id, state=state, content=run.content, model_name=hello.model if hello else "",
        model_digest=hello.digest if hello else "", tier=hello.tier if hello else "", latency_ms=timings.total_ms,
        tokens_generated=usage.completion_tokens, finish_reason=end.reason if end else "", usage=usage, timings=timings,
        route=route, attempt=claim.attempt, worker=hello.worker if hello else "", error=error, logprobs=run.logprobs,
        cache=note,
    )  # fmt: skip
    return Settlement(claim.id, claim.token, state, encode_result(result))


def _timings(run: Run, now_ns: int) -> Timings:
    """Times before the claim are the server's, after it our own monotonic ones."""
    queue_ms = float(run.queued_ms)
    first_ms = (run.first_ns - run.claimed_ns) / 1e6 if run.first_ns else 0.0
    total_ms = queue_ms + (now_ns - run.claimed_ns) / 1e6
    return Timings(
        queue_ms=queue_ms,
        route_ms=run.route_ms,
        ttft_ms=round(queue_ms + first_ms, 3) if run.first_ns else 0.0,
        decode_ms=round((now_ns - run.first_ns) / 1e6, 3) if run.first_ns else 0.0,
        total_ms=round(total_ms, 3),
    )
