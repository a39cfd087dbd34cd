"""Stages 1, 10 · tests · another life for a dead job of a memory queue, or none: lua/revive.lua and lua/drop.lua."""

from __future__ import annotations

from metamusesd.queues.base import INGRESS, JobEvent
from metamusesd.queues.memory_store import Job, Store

REPEAT_MS = 60_000


def revive(store: Store, id: str) -> str:
    """Its state then, `gone`, or what it is instead of dead."""
    job = store.get(id)
    if job is None or job.state != "dead":
        return job.state if job else "gone"
    _reopen(store.streams.entries[f"events:{id}"])
    job.attempt, job.crashes, job.retries = job.attempt + 1, 0, 0
    job.deadline_ms, job.ends_ms, job.ended_ms, job.result = 0, 0, 0, None
    job.tiers, job.route, job.queue, job.back, job.told, job.reason = (), b"", INGRESS, "", "", "revived"
    job.flight, job.patient = "", False
    job.started, job.written = False, 0
    store.put_back(job)
    store.emit(job, "restarted", data=b"revived")
    store.close()
    return job.state


def drop(store: Store, id: str) -> str:
    """`dropped`, `gone`, or what it is instead of dead."""
    job = store.get(id)
    if job is None:
        return "dropped" if store.dropped.get(id, 0) > store.now_ms() else "gone"
    if job.state != "dead":
        return job.state
    _forget(store, job)
    store.dropped[id] = store.now_ms() + REPEAT_MS
    return "dropped"


def _reopen(stream: list[JobEvent]) -> None:
    """A stream has one end."""
    if stream and stream[-1].kind == "dead":
        del stream[-1]


def _forget(store: Store, job: Job) -> None:
    sent = job.submission
    del store.jobs[sent.id]
    store.streams.entries.pop(f"events:{sent.id}", None)
    if store.idem.get((sent.tenant, sent.idempotency_key)) == sent.id:
        del store.idem[(sent.tenant, sent.idempotency_key)]
