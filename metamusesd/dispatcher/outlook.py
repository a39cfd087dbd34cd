"""Stages 2, 3, 6 · dispatcher · what it expects of its tiers: who lives, how fast it goes, who waits before whom.

pump: each call's claims ─► heard        rounds: depths, hosts, free places ─► surveyed     samples ─► placed
router, pump ◄─ hosts                    announced ◄─ hosts.own                             analyse ◄─ check
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence

from metamusesd.dispatcher.admission import too_late
from metamusesd.dispatcher.forecast import Forecast, raw_s
from metamusesd.dispatcher.hosts import Hosts
from metamusesd.dispatcher.router import TierView
from metamusesd.dispatcher.run import Run
from metamusesd.job import InferenceRequest
from metamusesd.queues.base import INGRESS, Claim, Depth, Host, Position, Routed, Service
from metamusesd.wire import Finished

_CLASSES = 4


class Outlook:
    """The expectations of one dispatcher. Nothing here waits or asks; `arrived`: there is a job to ask about."""

    def __init__(self, owner: str, tiers: Sequence[TierView]) -> None:
        self.hosts = Hosts(owner, tiers)
        self.forecast = Forecast([tier.name for tier in tiers])
        self.arrived = asyncio.Event()
        self.asleep: dict[str, float] = {}  # own tiers that come when they are wanted: seconds until then
        self.newcomer = ""  # a job that was routed a moment ago and waits
        self._models = {tier.name: ",".join(each.model for each in tiers if each.name == tier.name) for tier in tiers}
        self._flights: set[str] = set()  # forwarded since the last survey
        self._pressed: set[str] = set()  # tiers in which somebody waited since the last survey
        self._waiting: dict[str, list[int]] = {}  # by tier and class: the last survey, and what has passed since

    def __repr__(self) -> str:
        return f"<Outlook {self.hosts} {self.forecast}>"

    def heard(self, routed: Sequence[Routed], claims: Sequence[Claim], waiting: Collection[str]) -> None:
        """A claim call moved and brought these; jobs still wait in the tiers `waiting`."""
        now_s, counts = time.monotonic(), dict[str, int]()
        for claim in claims:
            if claim.queue != INGRESS:
                counts[claim.queue] = counts.get(claim.queue, 0) + 1
                self.forecast.begun(claim.id, now_s)
                self._count(claim.queue, claim.priority, -1)
        for tier, forecast in self.forecast.tiers.items():
            forecast.rate.started(counts.get(tier, 0), tier in waiting, now_s)
            if tier in waiting:
                self._pressed.add(tier)
        if routed and not self.arrived.is_set():
            gone = {claim.id for claim in claims if claim.queue != INGRESS}
            self.newcomer = next((job.id for job in routed if job.id not in gone), "")
            if self.newcomer:
                self.arrived.set()

    def forwarded(self, claim: Claim, tiers: Sequence[str], flight: str = "") -> None:
        """This job will wait there; unless it follows one of its flight that was forwarded a moment ago."""
        if flight:
            if flight in self._flights:
                return
            self._flights.add(flight)
        for tier in tiers:
            self._count(tier, claim.priority, 1)

    def ran(self, run: Run, end: Finished) -> None:
        """An answer is complete."""
        if end.error is None and end.reason in ("stop", "length") and (tier := self.forecast.tiers.get(run.tier)):
            tier.runs.append(((time.monotonic_ns() - run.claimed_ns) / 1e9, end.completion_tokens))

    def surveyed(self, depths: Sequence[Depth], hosts: Sequence[Host]) -> None:
        """Once a second: who waits, and who lives."""
        self.hosts.update(hosts)
        self._flights.clear()
        self._waiting = {depth.queue: list(depth.by_class) for depth in depths}

    def services(self, free: Mapping[str, int]) -> dict[str, Service]:
        """What to announce. `free` has the places of every own tier that has workers now; where somebody waits there is
        none, whatever is kept for higher classes."""
        now_s = time.monotonic()
        self.forecast.calibrate()
        for tier, model in self._models.items():
            places = 0 if tier in self._pressed else free.get(tier, 0)
            known = self.forecast.service(tier, model, places, now_s)
            self.hosts.own[tier] = known if tier in free else Service(model)
        self._pressed.clear()
        return dict(self.hosts.own)

    def placed(self, position: Position | None, id: str) -> None:
        """Where the newcomer, or one that is overdue, stands."""
        now_s = time.monotonic()
        if position is None or position.queue in ("", INGRESS):
            self.forecast.forget(id)
        elif (raw := raw_s(position.ahead, self.hosts.services(position.queue))) is not None:
            self.forecast.watch(id, position.queue, raw, now_s)
            self.forecast.waits(id, now_s)

    def wait_s(self, tier: str, priority: int) -> float | None:
        """How long a job of this class that is forwarded now will usually wait there. None: nobody has measured it."""
        if tier in self.asleep:
            return self.asleep[tier]
        services, ahead = self.hosts.services(tier), self.ahead(tier, priority)
        if ahead < sum(service.free for service in services):
            return 0.0
        raw = raw_s(ahead, services)
        factors = [service.factor_p50 for service in services if service.start_hz > 0]
        return None if raw is None else raw * (max(factors) if factors else 1.0)

    def check(self, claim: Claim, request: InferenceRequest, tiers: Sequence[str], passed_s: float = 0.0) -> None:
        """Raises DeadlineUnmeetable when none of these tiers can finish it in time. In doubt it may try. `passed_s`:
        since its claim."""
        if not claim.deadline_ms:
            return
        known = [self.forecast.tiers[tier] for tier in tiers if tier in self.forecast.tiers]
        if len(known) < len(tiers):
            return  # another host may be quick: it alone knows how long runs take there
        raws = [raw_s(self.ahead(tier, claim.priority), self.hosts.services(tier)) for tier in tiers]
        left_s = (claim.deadline_ms - claim.claimed_ms) / 1000 - passed_s
        most_tokens = request.params.max_tokens
        error = too_late(left_s, most_tokens, list(zip(raws, known, strict=True)), claim)
        if error is not None:
            raise error

    def ahead(self, tier: str, priority: int) -> int:
        """How many jobs of this class and of higher ones wait there, as far as was heard."""
        return sum(self._waiting.get(tier, ())[priority:])

    def _count(self, tier: str, priority: int, by: int) -> None:
        waiting = self._waiting.setdefault(tier, [0] * _CLASSES)
        waiting[priority] = max(0, waiting[priority] + by)
