"""Stage 10 · dispatcher · an answer with a flaw is tried again, once, a tier up: if there is one, and time for it.

Not when its tier or model is forced or its policy strict; not when its readers have text and must not start again.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from metamusesd.dispatcher.flaws import flaw
from metamusesd.dispatcher.outlook import Outlook
from metamusesd.dispatcher.router import RoutingRules
from metamusesd.dispatcher.run import End, Run
from metamusesd.errors import DeadlineUnmeetable, InvalidRequest
from metamusesd.job import InferenceRequest, parse_request
from metamusesd.queues.base import Requeue
from metamusesd.route import Route, decode_route, encode_route
from metamusesd.tiers import GENERAL_TIERS
from metamusesd.wire import Finished

REASON = "escalated"


class Escalation:
    """Decides for one dispatcher. `served`: whether a tier has workers now."""

    def __init__(self, rules: RoutingRules, outlook: Outlook, served: Callable[[str], bool]) -> None:
        self._rules, self._outlook, self._served = rules, outlook, served

    def again(self, run: Run, end: End) -> Requeue | None:
        """What to do instead of settling; None: the answer is good enough, or nobody could do better. Marks the run as
        flawed in any case: such an answer is nothing for the caches."""
        if not self._rules.escalate or type(end) is not Finished or end.error is not None:
            return None
        if end.reason != "stop":  # cut by its own bound: a heavier tier would be cut as well
            return None
        try:
            request, route = parse_request(run.claim.body), decode_route(run.claim.route)
        except (InvalidRequest, msgspec.MsgspecError):
            return None
        why = flaw(run.content, request, run.logprobs, self._rules.escalate_logprob)
        run.flawed = bool(why)
        if not why or request.tier is not None or request.model is not None or not _may_start_again(run, request):
            return None
        heavier = tuple(tier for tier in tiers_up(run.tier, route) if self._served(tier))
        if not heavier or not self._in_time(run, request, heavier):
            return None
        up = msgspec.structs.replace(route, escalated=f"{run.tier}: {why}", queued=heavier)
        return Requeue(run.claim.id, run.claim.token, REASON, tiers=heavier, route=encode_route(up))

    def _in_time(self, run: Run, request: InferenceRequest, tiers: tuple[str, ...]) -> bool:
        if run.overdue:
            return False
        try:
            self._outlook.check(run.claim, request, tiers, passed_s=run.held_s)
        except DeadlineUnmeetable:
            return False
        return True


def tiers_up(served: str, route: Route) -> tuple[str, ...]:
    """The acceptable tiers that are heavier than the one that answered, the nearest first; than a specialist only the
    heaviest of all is. None when the job has been a tier up already."""
    if route.escalated or route.policy == "strict":
        return ()
    least = GENERAL_TIERS.index(served) + 1 if served in GENERAL_TIERS else len(GENERAL_TIERS) - 1
    return tuple(tier for tier in GENERAL_TIERS[least:] if tier in route.tiers)


def _may_start_again(run: Run, request: InferenceRequest) -> bool:
    if request.params.ignore_eos:  # a measurement: nobody reads it
        return False
    return not run.chars or not run.claim.stream or request.on_restart == "restart"
