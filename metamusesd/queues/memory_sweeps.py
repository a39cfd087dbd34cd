"""Stages 2, 10 · tests · one sweep over a memory queue: what lua/reap.lua does, part by part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metamusesd.job import TERMINAL
from metamusesd.queues.base import CLASS_STRIDE, INGRESS, Reaped, Suspect
from metamusesd.queues.memory_store import Job, Store


class Sweep:
    """One call of reap. What it did gathers in its lists."""

    def __init__(self, store: Store, owner: str, tiers: Sequence[str]) -> None:
        self._store, self._owner, self._tiers = store, owner, tiers
        self._now_ms = store.now_ms()
        self._served: set[str] = set()
        self._requeued: list[str] = []
        self._expired: list[str] = []
        self._woken: list[str] = []
        self._timed_out: list[str] = []
        self._rerouted: list[str] = []
        self._doubted: list[Suspect] = []

    def run(self, suspects: Iterable[Suspect], takeover: bool) -> Reaped:
        """All parts in the order of the script."""
        self._meet_hosts()
        if takeover:
            self._take_over()
        self._sweep_deadlines()
        self._wake_delayed()
        self._sweep_timeouts()
        self._sweep_leases(set(suspects))
        if self._store.limits.strand_ms:
            self._look_for_stranded()
        return Reaped(
            tuple(self._doubted), tuple(self._requeued), tuple(self._expired), tuple(self._woken),
            tuple(self._timed_out), tuple(self._rerouted),
        )  # fmt: skip

    def _live(self) -> list[Job]:
        return [job for job in self._store.jobs.values() if job.state not in TERMINAL]

    def _meet_hosts(self) -> None:
        living = [host for host, end_ms in self._store.hosts.values() if end_ms > self._now_ms]
        self._served = {tier for host in living for tier, service in host.tiers.items() if service.workers}
        self._store.drain_hz = sum(service.start_hz for host in living for service in host.tiers.values())

    def _take_over(self) -> None:
        instance = self._owner.rpartition(":")[0]
        for job in self._live():
            if job.state == "running" and job.owner != self._owner and job.owner.rpartition(":")[0] == instance:
                self._release(job, "dispatcher_restarted")

    def _release(self, job: Job, reason: str) -> None:
        if self._store.overdue(job):
            self._expired.append(job.submission.id)
            self._store.fail(job, "expired")
        else:
            self._requeued.append(job.submission.id)
            self._store.give_back(job, reason)

    def _sweep_deadlines(self) -> None:
        for job in self._live():
            if self._store.overdue(job):
                self._expired.append(job.submission.id)
                self._store.fail(job, "expired")

    def _wake_delayed(self) -> None:
        for job in self._live():
            if job.state == "delayed" and job.due_ms <= self._now_ms:
                self._store.put_back(job)
                self._woken.append(job.submission.id)

    def _sweep_timeouts(self) -> None:
        for priority, bounds in enumerate(self._store.limits.classes):
            delay = bounds.timeout_action == "delay"
            if not bounds.timeout_ms or (delay and priority == 0):
                continue
            for queue in (INGRESS, *self._tiers):
                for job in self._store.waiting(queue):
                    late = self._now_ms - job.submitted_ms >= bounds.timeout_ms
                    untried = job.attempt == 1 and not (job.started or job.patient)
                    if job.state in ("queued", "ready") and job.priority == priority and late and untried:
                        self._time_out(job, delay)

    def _time_out(self, job: Job, delay: bool) -> None:
        self._timed_out.append(job.submission.id)
        if delay:
            job.score = 3 * CLASS_STRIDE + job.score % CLASS_STRIDE
            self._store.put_back(job)
        else:
            self._store.refuse(job)
            self._time_out_heirs(job)

    def _time_out_heirs(self, job: Job) -> None:
        """Whose own time is out goes with the leader: not one a sweep."""
        heir = self._store.jobs.get(self._store.leaders.get(job.flight, ""))
        if heir is None or heir.state in TERMINAL or heir.patient or heir.priority != job.priority:
            return
        if self._now_ms - heir.submitted_ms >= self._store.limits.classes[heir.priority].timeout_ms:
            self._time_out(heir, delay=False)

    def _sweep_leases(self, suspects: set[Suspect]) -> None:
        for job in self._live():
            if job.state != "running" or job.lease_end_ms > self._now_ms:
                continue
            suspect = Suspect(job.submission.id, job.lease_end_ms)
            if suspect in suspects:
                self._release(job, "lease_expired")
            else:
                self._doubted.append(suspect)

    def _look_for_stranded(self) -> None:
        unserved = self._store.unserved
        for tier in self._tiers:
            if tier in self._served or not self._store.waiting(tier):
                unserved.pop(tier, None)
            elif self._now_ms - unserved.setdefault(tier, self._now_ms) >= self._store.limits.strand_ms:
                for job in self._store.waiting(tier):
                    self._reroute(job, tier)

    def _reroute(self, job: Job, tier: str) -> None:
        others = tuple(other for other in job.tiers if other != tier)
        if self._served.intersection(others):
            job.tiers = others
            return
        job.tiers, job.reason = (), "stranded"
        self._store.put_back(job)
        self._rerouted.append(job.submission.id)
