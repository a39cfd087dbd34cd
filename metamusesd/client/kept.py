"""Stage 9 · producer · what this client submitted and has not seen ended, so that it can be submitted again. No I/O.

Redis may lose the last moments before its own crash. A job whose hash is gone is then submitted again under its id,
with what is left of its deadline. Bounded by jobs, bytes and tries; what falls out is simply not healed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from metamusesd.queues.base import Submission

RESUBMITS = 3  # times that one job is submitted again
KEPT_JOBS = 20_000
KEPT_BYTES = 64 << 20


@dataclass(slots=True)
class _Entry:
    job: Submission
    since_s: float
    tries: int = 0


class Kept:
    """Submissions by id, oldest out first."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._entries: dict[str, _Entry] = {}
        self._bytes = 0

    def keep(self, job: Submission) -> None:
        """It was accepted. A job that is kept already keeps its clock and its tries."""
        if job.id in self._entries or len(job.body) > KEPT_BYTES:
            return
        self._entries[job.id] = _Entry(job, self._now_s())
        self._bytes += len(job.body)
        while len(self._entries) > KEPT_JOBS or self._bytes > KEPT_BYTES:
            self.forget(next(iter(self._entries)))

    def forget(self, id: str) -> None:
        """It ended, or nobody wants it any more."""
        if entry := self._entries.pop(id, None):
            self._bytes -= len(entry.job.body)

    def again(self, id: str) -> Submission | None:
        """The job as it is to be submitted once more; None: not ours, tried often enough, or too late for it."""
        entry = self._entries.get(id)
        if entry is None or entry.tries >= RESUBMITS:
            return None
        entry.tries += 1
        return self._with_time_left(entry)

    def _with_time_left(self, entry: _Entry) -> Submission | None:
        if not entry.job.deadline_ms:
            return entry.job
        left_ms = entry.job.deadline_ms - round((self._now_s() - entry.since_s) * 1000)
        return replace(entry.job, deadline_ms=left_ms) if left_ms > 0 else None
