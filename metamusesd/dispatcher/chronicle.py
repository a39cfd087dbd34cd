"""All stages · dispatcher · what the log says of jobs: one line at the end of each, and one for everything unusual.

Every line names the job, its tenant, the attempt, and the worker and tier as far as there are any, so that one search
tells one job's story. Nothing is written a token. What the queue ends by itself, for its followers or while nobody here
has it, is known here only when a sweep says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import msgspec

from metamusesd.dispatcher.escalation import REASON as ESCALATED
from metamusesd.dispatcher.run import Back, End, Run
from metamusesd.errors import InvalidRequest, MetamusesdError
from metamusesd.job import InferenceRequest, Priority, Timings, Usage, decode_result, parse_request
from metamusesd.log import Logger, tells_prompts
from metamusesd.queues.base import Claim, Fault, Reaped, Requeue, Settlement, Verdict
from metamusesd.route import CacheNote
from metamusesd.wire import Refused

SHOWN_CHARS = 200  # of a prompt or an answer, if they are shown at all
NO_PLACE = Back("refused")  # between its claim and its turn the last place was taken
_LOST = (Fault.CRASH, Fault.CRASH_ALONE, Fault.KILLED)
_ENDS = (Verdict.CANCELLED, Verdict.EXPIRED)


class _Told(msgspec.Struct, frozen=True):
    """What is told of a result; the rest is skipped unread."""

    tier: str = ""
    from_cache: bool = False
    tokens_generated: int = 0
    finish_reason: str = ""
    usage: Usage = Usage()
    timings: Timings = Timings()
    error: dict[str, Any] | None = None
    cache: CacheNote | None = None


_TOLD = msgspec.json.Decoder(_Told)


class Chronicle:
    """Writes events about jobs; decides nothing. `max_crashes`: of the queue; it does not say when it buries a job."""

    def __init__(self, log: Logger, max_crashes: int) -> None:
        self._log, self._max_crashes = log, max_crashes

    def refused(self, claim: Claim, error: MetamusesdError) -> None:
        """A job that nobody can serve: that is its end."""
        where = {"field": error.fields["field"]} if "field" in error.fields else {}
        self._log.info("job refused", **_of(claim), state="failed", reason=error.code, **where, **_prompt(claim.body))

    def answered(self, claim: Claim, end: Settlement) -> None:
        """A cache had its answer."""
        self._ended(claim, end, {})

    def settled(self, run: Run, end: Settlement) -> None:
        """Its end is written."""
        self._ended(run.claim, end, _where(run))

    def ended_elsewhere(self, run: Run, why: End) -> None:
        """It was cancelled or its deadline passed; or somebody else holds it now."""
        facts = {**_of(run.claim), **_where(run), "tokens": run.tokens}
        if why in _ENDS:
            self._log.info("job ended", **facts, state=str(why), total_ms=_total_ms(run))
        else:
            self._log.warning("job is somebody else's now", **facts, verdict=str(why))

    def given_back(self, run: Run, end: End, back: Requeue, verdict: Verdict) -> None:
        """It will run again, or never more. What the queue has decided otherwise, nobody here has given back."""
        if verdict is not Verdict.OK:
            self.ended_elsewhere(run, verdict)
            return
        facts = {**_of(run.claim), **_where(run), "reason": back.reason, "tokens": run.tokens}
        if back.fault in _LOST:
            facts |= {"fault": str(back.fault), "crashes": run.claim.crashes + (back.fault is not Fault.KILLED)}
            self._log.warning("job lost its worker", **facts)
            if back.fault is Fault.CRASH_ALONE and run.claim.crashes + 1 >= self._max_crashes:
                self._log.error("job is quarantined", **_of(run.claim), state="dead", reason=back.reason)
        elif back.fault is Fault.ERROR:
            self._log.warning("job is tried again", **facts, in_ms=back.delay_ms, retries=run.claim.retries + 1)
        elif back.reason == ESCALATED:
            self._log.info("job goes a tier up", **facts, tiers=" ".join(back.tiers))
        else:  # refusals come in bursts, and cost nothing
            say = self._log.debug if type(end) is Refused or end == NO_PLACE else self._log.info
            say("job given back", **facts)

    def reaped(self, reaped: Reaped) -> None:
        """One sweep, whoever had held the jobs."""
        self._each("job ended", reaped.expired, state="expired")
        self._each("job waited too long", reaped.timed_out, reason="queue_timeout")
        self._each("job given back", reaped.requeued, reason="lease_expired")
        self._each("job given back", reaped.rerouted, reason="stranded")

    def _each(self, event: str, ids: Iterable[str], **facts: object) -> None:
        for id in ids:
            self._log.info(event, job=id, **facts)

    def _ended(self, claim: Claim, end: Settlement, where: dict[str, Any]) -> None:
        result = _TOLD.decode(end.result)
        times = result.timings
        facts: dict[str, Any] = {
            **_of(claim), "tier": result.tier, **where, "state": end.state, "tokens": result.tokens_generated,
            "prompt_tokens": result.usage.prompt_tokens, "queue_ms": times.queue_ms, "ttft_ms": times.ttft_ms,
            "total_ms": times.total_ms, "reason": (result.error or {}).get("code", result.finish_reason),
        }  # fmt: skip
        if result.from_cache and result.cache is not None:
            facts["cache"] = result.cache.kind
        if tells_prompts():
            facts |= {**_prompt(claim.body), "answer": decode_result(end.result).content[:SHOWN_CHARS]}
        if end.state == "failed" and (result.error or {}).get("retryable"):
            self._log.warning("job ended", **facts)  # ours to look at; any other failure is the request's own
        else:
            self._log.info("job ended", **facts)


def _of(claim: Claim) -> dict[str, Any]:
    """What every line about a job says."""
    urgency = Priority(claim.priority).name.lower()
    return {"job": claim.id, "tenant": claim.tenant, "class": urgency, "attempt": claim.attempt}


def _where(run: Run) -> dict[str, Any]:
    return {"tier": run.tier, "worker": run.link.worker} if run.link is not None else {"tier": run.tier}


def _total_ms(run: Run) -> float:
    return round(run.queued_ms + (time.monotonic_ns() - run.claimed_ns) / 1e6, 3)


def _prompt(body: bytes) -> dict[str, str]:
    """The beginning of what was asked, where the configuration wants that told."""
    if not tells_prompts():
        return {}
    try:
        return {"prompt": _asked(parse_request(body))[:SHOWN_CHARS]}
    except InvalidRequest:
        return {"prompt": body[:SHOWN_CHARS].decode("utf-8", "replace")}


def _asked(request: InferenceRequest) -> str:
    return request.user_query or (request.messages[-1].content if request.messages else "")
