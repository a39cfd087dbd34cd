"""Stages 5, 10 · tests · equal jobs of a memory queue that are computed once: `flights` of lua/common.lua."""

from __future__ import annotations

import msgspec

from metamusesd.job import Result, Timings, decode_result, encode_result
from metamusesd.queues.base import CLASS_STRIDE
from metamusesd.queues.memory_store import Job, Store
from metamusesd.route import CacheNote, decode_route

MOST_FOLLOWERS = 256
LEADING = ("queued", "ready", "running")
SAME_FOR_ALL = ("invalid_request", "context_overflow", "invalid_grammar", "template_failed")
EQUAL_NOTE = CacheNote(kind="flight", score=1, reason="an equal job was under way")


def join(store: Store, job: Job, flight: str) -> bool:
    """Whether the job follows another one from now on; else it leads, or goes alone."""
    leader = store.jobs.get(store.leaders.get(flight, ""))
    if not flight or leader is job:
        return False
    if leader is None or leader.flight != flight or leader.state not in LEADING:
        store.leaders[flight] = job.submission.id
        return False
    if leader.submission.tenant != job.submission.tenant:
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
    shared = _shareable(job, state)
    if followers and shared is None and state not in ("done", "dead"):
        heir = followers[0]
        store.leaders[flight] = heir.submission.id
        heir.crashes = max(heir.crashes, job.crashes)
        heir.patient = heir.patient or job.started or job.patient
        store.put_back(heir)
        return
    for follower in followers:
        if state == "dead":
            _follow_to_the_grave(store, job, follower)
        elif shared is not None:
            _deliver(store, shared, state, follower)
        else:
            follower.flight, follower.crashes = "", 0
            store.put_back(follower)


def _followers(store: Store, flight: str) -> list[Job]:
    found = [job for job in store.jobs.values() if job.flight == flight and job.state == "following"]
    return sorted(found, key=lambda job: job.score)


def _raise(store: Store, leader: Job, priority: int) -> None:
    leader.score = (3 - priority) * CLASS_STRIDE + leader.score % CLASS_STRIDE
    leader.patient = True
    if leader.state == "running":
        leader.raised = True
        store.arm(f"cancels:{leader.owner}")
    else:
        store.put_back(leader)


def _shareable(leader: Job, state: str) -> Result | None:
    """The result that is everybody's, or None."""
    if state not in ("done", "failed"):
        return None
    try:
        result = decode_result(leader.result or b"")
    except msgspec.MsgspecError:
        return None
    return result if state == "done" or (result.error or {}).get("code") in SAME_FOR_ALL else None


def _note_of(follower: Job) -> CacheNote:
    try:
        note = decode_route(follower.route).lookup
    except msgspec.MsgspecError:
        note = None
    return note if note is not None and note.kind == "flight" else EQUAL_NOTE


def _deliver(store: Store, result: Result, state: str, follower: Job) -> None:
    follower.flight = ""
    text = result.content if state == "done" else ""
    if text:
        store.emit(follower, "started")
        store.emit(follower, "token", text=text, tokens=result.tokens_generated)
    waited_ms = max(0, store.now_ms() - follower.submitted_ms)
    timings = Timings(queue_ms=waited_ms, ttft_ms=waited_ms, total_ms=waited_ms)
    shared = msgspec.structs.replace(
        result, request_id=follower.submission.id, latency_ms=waited_ms, from_cache=True, timings=timings,
        cache=_note_of(follower),
    )  # fmt: skip
    store.finish(follower, state, encode_result(shared))


def _follow_to_the_grave(store: Store, leader: Job, follower: Job) -> None:
    follower.crashes = leader.crashes
    if _note_of(follower).score < 1:  # it only meant the same
        follower.flight = ""
        store.put_back(follower)
        return
    follower.reason, follower.evidence = "leader_died", leader.evidence
    store.fail(follower, "dead")
