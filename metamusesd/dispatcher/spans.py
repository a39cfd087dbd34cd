"""All stages · dispatcher · the spans of one job, seen from one of its claims. Pure, but for the two clocks.

Times before the claim are the server's, and are moved so that the claim is at the same moment by both clocks; times
after it are our own monotonic ones. Names of attributes are OpenTelemetry's (gen_ai.*) where it has any.
"""

from __future__ import annotations

import time
from typing import Any

from metamusesd.dispatcher.run import Back, End, Lost, Run
from metamusesd.errors import InvalidRequest
from metamusesd.job import InferenceRequest, Priority, Result, decode_result, parse_request
from metamusesd.queues.base import Claim, Requeue, Settlement
from metamusesd.route import Route
from metamusesd.tracing import Span, Trace, span_id
from metamusesd.wire import Finished

_ASKED = ("max_tokens", "temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty")


class Story:
    """Makes spans for `claim`, which came at `claimed_ns` (monotonic)."""

    def __init__(self, claim: Claim, trace: Trace, claimed_ns: int) -> None:
        self._claim, self._trace, self._claimed_ns = claim, trace, claimed_ns
        self._wall_ns = time.time_ns() - time.monotonic_ns()
        self._root = span_id(claim.id, claim.submitted_ms)
        self.submitted_ns = claimed_ns - max(0, claim.claimed_ms - claim.submitted_ms) * 1_000_000

    def arrival(self, route: Route, routed_ns: int, now_ns: int) -> list[Span]:
        """From the submit to the end of the lookup."""
        read = {
            "metamusesd.domain": route.domain, "metamusesd.complexity": route.complexity,
            "metamusesd.tiers": list(route.tiers), "metamusesd.reason": route.reason,
        }  # fmt: skip
        return [
            self._span("wait for routing", self.submitted_ns, self._claimed_ns),
            self._span("route", self._claimed_ns, routed_ns, read),
            self._span("cache lookup", routed_ns, now_ns),
        ]

    def queued(self, tier: str, since_ns: int) -> Span:
        """Until its claim."""
        return self._span("wait in queue", since_ns, self._claimed_ns, {"metamusesd.tier": tier})

    def attempt(self, run: Run, end: End, problem: str, ended_ns: int) -> list[Span]:
        """What a worker had of it, by the worker's own measure of the prompt; before a first token nobody has one."""
        facts = {"metamusesd.tier": run.tier, "metamusesd.attempt": self._claim.attempt}
        facts |= {"metamusesd.worker": run.link.worker} if run.link is not None else {}
        facts |= {"error.type": problem} if problem else {}
        spans = [self._span("attempt", self._claimed_ns, ended_ns, facts, problem)]
        if run.link is None:
            return spans
        parent, first_ns = spans[0].span_id, run.first_ns or ended_ns
        prefill_ns = int(end.prefill_ms * 1e6) if type(end) is Finished else 0
        begun_ns = max(self._claimed_ns, first_ns - prefill_ns)
        spans.append(self._span("prepare", self._claimed_ns, begun_ns, parent=parent))
        if prefill_ns and type(end) is Finished:
            read = {"gen_ai.usage.input_tokens": end.prompt_tokens, "metamusesd.cached_tokens": end.cached_tokens}
            spans.append(self._span("prefill", begun_ns, first_ns, read, parent=parent))
        if run.first_ns:
            made = {"gen_ai.usage.output_tokens": run.tokens}
            spans.append(self._span("decode", run.first_ns, ended_ns, made, parent=parent))
        return spans

    def settled(self, ended_ns: int, now_ns: int) -> Span:
        """Until the queue had written the end of the attempt."""
        return self._span("settle", ended_ns, now_ns)

    def whole(self, facts: dict[str, Any], problem: str, now_ns: int) -> Span:
        """The job, which all others are parts of."""
        known = about(self._claim) | facts
        name = f"{known['gen_ai.operation.name']} {facts.get('gen_ai.response.model', '')}".strip()
        known |= {"error.type": problem} if problem else {}
        start_ns, end_ns = self.submitted_ns + self._wall_ns, now_ns + self._wall_ns
        return Span(name, self._root, self._trace.parent_id, start_ns, end_ns, known, problem, entry=True)

    def _span(
        self, name: str, start_ns: int, end_ns: int, facts: dict[str, Any] | None = None, problem: str = "", *,
        parent: int = 0,
    ) -> Span:  # fmt: skip
        claim = self._claim
        id = span_id(claim.id, claim.submitted_ms, name, claim.token)
        return Span(
            name, id, parent or self._root, start_ns + self._wall_ns, end_ns + self._wall_ns, facts or {}, problem
        )


def about(claim: Claim) -> dict[str, Any]:
    """What is said of every job; what was asked with which parameters, and never a word of the prompt."""
    facts: dict[str, Any] = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "metamusesd", "metamusesd.job": claim.id,
        "metamusesd.tenant": claim.tenant, "metamusesd.class": Priority(claim.priority).name.lower(),
    }  # fmt: skip
    if (request := request_of(claim)) is not None:
        facts |= {"gen_ai.operation.name": "embeddings"} if request.kind == "embed" else {}
        asked = {f"gen_ai.request.{name}": getattr(request.params, name) for name in _ASKED}
        asked |= {"gen_ai.request.model": request.model, "gen_ai.request.stream": claim.stream}
        facts |= {name: value for name, value in asked.items() if value is not None}
    return facts


def outcome_of(run: Run, end: End, state: str) -> dict[str, Any]:
    """How a job ended that a worker had."""
    facts: dict[str, Any] = {"metamusesd.state": state, "metamusesd.tier": run.tier}
    if run.link is not None and run.link.hello is not None:
        facts |= {"gen_ai.response.model": run.link.hello.model, "metamusesd.worker": run.link.worker}
    if type(end) is Finished:
        facts |= {"gen_ai.usage.input_tokens": end.prompt_tokens, "gen_ai.usage.output_tokens": end.completion_tokens}
        facts |= {"gen_ai.response.finish_reasons": [end.reason]} if end.reason else {}
    return facts


def hit_of(end: Settlement) -> dict[str, Any]:
    """How a job ended that a cache had."""
    result: Result = decode_result(end.result)
    return {
        "metamusesd.state": end.state, "metamusesd.tier": result.tier, "gen_ai.response.model": result.model_name,
        "metamusesd.cache": result.cache.kind if result.cache is not None else "",
        "gen_ai.response.finish_reasons": [result.finish_reason],
    }  # fmt: skip


def problem_of(end: End, outcome: Settlement | Requeue | None, state: str) -> str:
    """A code, when an attempt went wrong or its job did; being cancelled is neither."""
    if state in ("done", "cancelled"):
        return ""
    if type(end) is Finished and end.error is not None:
        return str(end.error.get("code", "error"))
    if isinstance(outcome, Requeue) or isinstance(end, Lost | Back):
        return outcome.reason if isinstance(outcome, Requeue) else end.reason  # type: ignore[union-attr]
    return state


def request_of(claim: Claim) -> InferenceRequest | None:
    """None: its body is not one."""
    try:
        return parse_request(claim.body)
    except InvalidRequest:
        return None
