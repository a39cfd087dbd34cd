"""Stages 3, 6 · dispatcher · where a job is to wait, and which worker gets it: gathers what the pure deciders need.

forward ─► expect ─► spread.py: the queues of which tiers        place ─► places.py: which worker
ran     ─► lengths.py: how long answers get
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from metamusesd.dispatcher.fleet import Fleet, prefix_digest
from metamusesd.dispatcher.lengths import Lengths
from metamusesd.dispatcher.links import Link
from metamusesd.dispatcher.outlook import Outlook
from metamusesd.dispatcher.places import Order
from metamusesd.dispatcher.run import Run
from metamusesd.dispatcher.scheduler import estimate_tokens
from metamusesd.dispatcher.spread import spread
from metamusesd.errors import InvalidRequest
from metamusesd.job import InferenceRequest, parse_request
from metamusesd.queues.base import Claim
from metamusesd.route import Outlook as Expected
from metamusesd.route import Route, decode_route
from metamusesd.wire import Finished

REMEMBERED = 10_000


@dataclass(slots=True)
class _Facts:
    """What the scheduler must know of a job. `tiers`: whose workers may have it, the best first."""

    muse: str = ""
    max_tokens: int | None = None
    key: bytes = b""  # see prefix_digest
    tiers: tuple[str, ...] = ()


class Scheduling:
    """Of one dispatcher. `waiting`: the tiers in which jobs may wait for a place; `margin`: see [routing]."""

    def __init__(self, fleet: Fleet, outlook: Outlook, waiting: Callable[[str], bool], margin: float) -> None:
        self.lengths = Lengths()
        self._facts: dict[str, _Facts] = {}  # of jobs that were routed here and not placed yet
        self._fleet, self._outlook, self._waiting, self._margin = fleet, outlook, waiting, margin

    def forward(self, claim: Claim, request: InferenceRequest, route: Route) -> Route:
        """Stage 3's end: the route with the tiers in whose queues the job is to wait, and why."""
        facts = _Facts(muse_of(request), request.params.max_tokens, prefix_digest(request))
        if len(route.tiers) == 1:
            found = msgspec.structs.replace(route, queued=route.tiers)
        else:
            order = self._order(claim, facts, route.tiers)
            expected = tuple(self._expect(tier, order, facts.key) for tier in route.tiers)
            tiers, why = spread(expected, route.policy, self._margin)
            reason = f"{route.reason}; {why}" if why else route.reason
            found = msgspec.structs.replace(route, queued=tiers, outlook=expected, reason=reason)
        self._remember(claim.id, facts, found)
        return found

    def _expect(self, tier: str, order: Order, key: bytes) -> Expected:
        """While nobody has measured how fast a tier starts jobs: as fast as its slots become free."""
        run_s, wait_s = self._fleet.run_s(tier, order, key), self._outlook.wait_s(tier, order.priority)
        slots = sum(link.load.slots for link in self._fleet.ready.get(tier, ()))
        if wait_s is None and run_s is not None and slots:
            wait_s = (self._outlook.ahead(tier, order.priority) + 1) * run_s / slots
        return Expected(tier=tier, wait_s=_rounded(wait_s), run_s=_rounded(run_s), workers=self.served(tier))

    def place(self, run: Run) -> Link | None:
        """Stage 6: the worker that gets this run. None: none has room."""
        facts = self._facts.pop(run.claim.id, None) or _read(run.claim)
        run.muse = facts.muse
        tiers = self._tiers(run.claim.queue, facts)
        return self._fleet.place(run, tiers, self._order(run.claim, facts, tiers), facts.key)

    def ran(self, run: Run, end: Finished) -> None:
        """An answer is complete: its length is learnt."""
        if end.error is not None or end.reason not in ("stop", "length"):
            return
        self.lengths.learn(run.tier, run.muse, end.completion_tokens)

    def _remember(self, id: str, facts: _Facts, route: Route) -> None:
        """What `place` will ask, unless another host claims the job: reading it out of the job again costs more."""
        if len(self._facts) >= REMEMBERED:
            self._facts.clear()
        facts.tiers = _homes(route)
        self._facts[id] = facts

    def _tiers(self, claimed: str, facts: _Facts) -> list[str]:
        """Whose workers may have it: those of the tier that it was claimed from; and of the others that it was to wait
        for, or its home, those where nobody waits."""
        return [tier for tier in facts.tiers if tier == claimed or not self._waiting(tier)] or [claimed]

    def _order(self, claim: Claim, facts: _Facts, tiers: Sequence[str]) -> Order:
        expected = {tier: self.lengths.expect(tier, facts.muse, facts.max_tokens) for tier in tiers}
        return Order(claim.priority, estimate_tokens(claim), expected, tiers[0], self._margin)

    def served(self, tier: str) -> bool:
        """It has workers, here or on another host, or will have when it is wanted."""
        return tier in self._outlook.asleep or bool(self._fleet.ready.get(tier)) or self._outlook.hosts.served(tier)


def _read(claim: Claim) -> _Facts:
    """Out of a job that was routed elsewhere, or is claimed again."""
    try:
        request, route = parse_request(claim.body), decode_route(claim.route)
    except (InvalidRequest, msgspec.MsgspecError):
        return _Facts()
    return _Facts(muse_of(request), request.params.max_tokens, prefix_digest(request), _homes(route))


def _homes(route: Route) -> tuple[str, ...]:
    """The best tier, and those that it was to wait for; of an escalated one only these: it comes from there."""
    return route.queued if route.escalated else tuple(dict.fromkeys((*route.tiers[:1], *route.queued)))


def muse_of(request: InferenceRequest) -> str:
    """Who answers."""
    return "" if request.muse_id is None else str(request.muse_id)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
