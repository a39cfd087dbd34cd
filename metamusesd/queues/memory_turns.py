"""Stage 2 · tests · which jobs a claim takes from a memory queue, with the aged in their turns: a pure decision."""

from __future__ import annotations

from collections.abc import Sequence

from metamusesd.queues.base import Limits
from metamusesd.queues.memory_store import Job

TURNS, CLOCK_MS = 8, 1000  # as in lua/claim.lua


def take_turns(
    waiting: Sequence[Job], count: int, turn: int, limits: Limits, now_ms: int
) -> tuple[list[Job], frozenset[str]]:
    """The jobs to take next, and the ids of those that are taken as aged.

    `waiting` are all jobs of the queue in their order, `turn` the claims since the last turn of the aged. Jobs whose
    deadline has passed may be among the answer, besides `count` others: they are to be ended.
    """
    chosen: dict[str, Job] = {}
    aged: set[str] = set()
    plain = list(waiting[:count])
    for n in range(1, count + 1):
        job = _most_overdue(waiting, chosen, limits, now_ms) if (turn + n) % TURNS == 0 else None
        if job:
            aged.add(job.submission.id)
        else:
            job = next((each for each in plain if each.submission.id not in chosen), None)
        if job is None:
            break
        chosen[job.submission.id] = job
    return list(chosen.values()), frozenset(aged)


def _most_overdue(waiting: Sequence[Job], chosen: dict[str, Job], limits: Limits, now_ms: int) -> Job | None:
    best, longest = None, -1
    for priority in (3, 2, 1, 0):
        limit_ms = limits.classes[priority].max_wait_ms
        job = _head(waiting, chosen, priority, now_ms) if limit_ms else None
        over_ms = now_ms - _since(job, now_ms) - limit_ms if job else -1
        if over_ms > longest:
            best, longest = job, over_ms
    return best


def _since(job: Job, now_ms: int) -> int:
    """Who was submitted in the future came before the clock was put back, and has waited longest."""
    return 0 if job.submitted_ms > now_ms + CLOCK_MS else job.submitted_ms


def _head(waiting: Sequence[Job], chosen: dict[str, Job], priority: int, now_ms: int) -> Job | None:
    for job in waiting:
        if job.priority != priority or job.submission.id in chosen:
            continue
        if not 0 < job.deadline_ms <= now_ms:
            return job
        chosen[job.submission.id] = job
    return None
