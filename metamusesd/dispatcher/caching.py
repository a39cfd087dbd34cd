"""Stages 4, 10 · dispatcher · the rules of the caches, from the configuration; the result of a job that one ends."""

from __future__ import annotations

import time
from dataclasses import dataclass

from metamusesd.config import Config
from metamusesd.job import Answer, Result, Timings, encode_result
from metamusesd.queues.base import Claim, Settlement
from metamusesd.route import CacheNote, Route

MOST_CHARS = 4000  # no embedder's window is so wide: the vectors process need not be told of longer texts


@dataclass(frozen=True, slots=True)
class Rules:
    """The part of the configuration that the dispatcher needs. The default: no cache at all."""

    enabled: bool = False
    semantic: bool = False
    coalesce: bool = False
    exact_domains: frozenset[str] = frozenset()
    ttl_ms: int = 86_400_000
    most_answer_bytes: int = 65_536
    budget_ms: float = 50.0
    embedder: str = ""  # its name, for the results of embed jobs


def rules_of(config: Config) -> Rules:
    """From [cache]."""
    cache = config.cache
    return Rules(
        enabled=cache.enabled, semantic=cache.enabled and cache.semantic, coalesce=cache.enabled and cache.coalesce,
        exact_domains=frozenset(cache.exact_domains), ttl_ms=round(cache.ttl_hours * 3_600_000),
        most_answer_bytes=cache.max_answer_bytes, budget_ms=cache.budget_ms, embedder=cache.embedder,
    )  # fmt: skip


def hit(claim: Claim, routing: Route, answer: Answer, note: CacheNote, route_ms: float, passed_ms: float) -> Settlement:
    """The end of a job that a cache answers, `passed_ms` after its claim. Its stream gets the answer as one token."""
    queue_ms = float(max(0, claim.claimed_ms - claim.submitted_ms))
    total_ms = round(queue_ms + passed_ms, 3)
    timings = Timings(queue_ms=queue_ms, route_ms=round(route_ms, 3), ttft_ms=total_ms, total_ms=total_ms)
    result = Result(
        request_id=claim.id, content=answer.content, model_name=answer.model_name, model_digest=answer.model_digest,
        tier=answer.tier, latency_ms=total_ms, from_cache=True, tokens_generated=answer.tokens_generated,
        finish_reason=answer.finish_reason, usage=answer.usage, timings=timings, route=routing, attempt=claim.attempt,
        cache=note,
    )  # fmt: skip
    replay = answer.content if claim.stream else ""
    return Settlement(
        claim.id, claim.token, "done", encode_result(result), replay=replay, replay_tokens=answer.tokens_generated
    )


def age_s(created_ms: int) -> float:
    """How old an answer is, by this host's clock; never under 0."""
    return round(max(0.0, time.time() - created_ms / 1000), 3)
