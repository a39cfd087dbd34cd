"""Stages 1, 2 · clients, dispatcher, commands · the queue's limits out of the configuration."""

from __future__ import annotations

from metamusesd.config import CLASSES, Cache, Config, JobClass
from metamusesd.queues.answers import AnswerLimits
from metamusesd.queues.base import ClassLimits, Limits


def limits_of(config: Config) -> Limits:
    """What the configuration allows; a class that it does not name has its default."""
    queue = config.queue
    low, normal, high, critical = (_class_limits(config.classes.get(name, CLASSES[name])) for name in CLASSES)
    return Limits(
        max_jobs=queue.max_jobs, max_bytes=queue.max_bytes, max_tenant_jobs=queue.max_tenant_jobs,
        max_crashes=queue.max_crashes, result_ttl_s=queue.result_ttl_s, strand_ms=round(queue.strand_s * 1000),
        classes=(low, normal, high, critical), answers=_answer_limits(config.cache),
    )  # fmt: skip


def _class_limits(bounds: JobClass) -> ClassLimits:
    return ClassLimits(
        max_queue_size=bounds.max_queue_size, max_wait_ms=round(bounds.max_wait_s * 1000),
        timeout_ms=round(bounds.timeout_s * 1000), timeout_action=bounds.timeout_action,
    )  # fmt: skip


def _answer_limits(cache: Cache) -> AnswerLimits:
    return AnswerLimits(
        ttl_ms=round(cache.ttl_hours * 3_600_000), most=cache.max_entries, most_bytes=cache.max_bytes,
        repeat_ms=round(cache.repeat_s * 1000),
    )  # fmt: skip
