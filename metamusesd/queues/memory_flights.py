"""Stages 5, 10 · tests · equal jobs of a memory queue that are computed once: `flights` of lua/common.lua."""

from __future__ import annotations

import msgspec

from metamusesd.job import TERMINAL, CacheNote, decode_result, encode_result
from metamusesd.queues.base import CLASS_STRIDE
from metamusesd.queues.memory_store import Job, Store

MOST_FOLLOWERS = 256


def join(store: Store, job: Job, flight: str) -> bool:
    """Whether the job follows another one from now on; else it leads, or goes alone."""
    if job.flight != flight:
        ended(store, job, "left")
        job.flight = flight
    leader = store.jobs.get(store.leaders.get(flight, ""))
    if not flight or leader is job:
        return False
    if leader is None or leader.flight != flight or leader.state in TERMINAL or leader.state == "following":
        store.leaders[flight] = job.submission.id
        return False
    if len(_followers(store, flight)) >= MOST_FOLLOWERS:
        job.flight = ""
        return False
    job.state, job.token, job.owner = "following", "", ""
    if job.priority > leader.priority:
        _raise(store, leader, job.priority)
    return True


def ended(store: Store, job: Job, state: str) -> None:
    """A job of a flight has ended in this way, or has `left` it. What that means for those that follow it."""
    flight = job.flight
    if not flight or store.leaders.get(flight) != job.submission.id:
        return
    del store.leaders[flight]
    followers = _followers(store, flight)
    if followers and state not in ("done", "dead"):
        heir = followers[0]
        store.leaders[flight] = heir.submission.id
        heir.crashes = max(heir.crashes, job.crashes)
        store.put_back(heir)
        return
    for follower in followers:
        if state == "done":
            _deliver(store, job, follower)
        else:
            follower.crashes, follower.reason, follower.evidence = job.crashes, "leader_died", job.evidence
            store.fail(follower, "dead")


def _followers(store: Store, flight: str) -> list[Job]:
    found = [job for job in store.jobs.values() if job.flight == flight and job.state == "following"]
    return sorted(found, key=lambda job: job.score)


def _raise(store: Store, leader: Job, priority: int) -> None:
    leader.score = (3 - priority) * CLASS_STRIDE + leader.score % CLASS_STRIDE
    if leader.state == "running":
        leader.raised = True
        store.arm(f"cancels:{leader.owner}")
    elif leader.state in ("ready", "queued"):
        store.put_back(leader)


def _deliver(store: Store, leader: Job, follower: Job) -> None:
    follower.flight = ""
    try:
        result = decode_result(leader.result or b"")
    except msgspec.MsgspecError:
        store.put_back(follower)
        return
    id, from_id = follower.submission.id, leader.submission.id
    store.emit(follower, "started")
    if result.content:
        store.emit(follower, "token", text=result.content, tokens=result.tokens_generated)
    note = CacheNote(kind="flight", score=1, reason=f"the run of {from_id}")
    waited_ms = max(0, store.now_ms() - follower.submitted_ms)
    shared = msgspec.structs.replace(result, request_id=id, latency_ms=waited_ms, from_cache=True, cache=note)
    store.finish(follower, "done", encode_result(shared))
