"""Supervisor · when a child that died starts again. A pure rule: history in, decision out (ADR 11).

    permanent error (exit 78, or the child said so)                give up at once
    BOOT_LIMIT deaths in a row before it was ever ready            give up: it cannot start
    more than `limit` unexplained deaths within `window_s`         give up: restarts do not help
    an unexplained death                                           again, after base · 2ⁿ with jitter, n of them so far
    an explained one (it had done work, or somebody killed it)     again, after base · 2ⁿ, at most EXPLAINED_MOST_S

A poison job explains the death of its worker: the queue counts it against the job, so it may not count here as well.
The embedded Redis, once it has answered, is never given up: without its disk it dies until there is room again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metamusesd.config import Daemon

BOOT_LIMIT = 3
EXPLAINED_MOST_S = 1.0
STEADY_S = 10.0  # a child that was ready for so long was well


@dataclass(frozen=True, slots=True)
class Policy:
    """The restart budget of one child."""

    limit: int
    window_s: float
    backoff_s: float
    backoff_most_s: float


@dataclass(frozen=True, slots=True)
class Died:
    """One death: when, and whether something explains it."""

    at_s: float
    explained: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """Start it again after this pause."""

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start it again."""

    reason: str


def policy(daemon: Daemon) -> Policy:
    """The budget that the configuration gives every child."""
    return Policy(daemon.restart_limit, daemon.restart_window_s, daemon.backoff_s, daemon.backoff_most_s)


def decide(
    budget: Policy, deaths: Sequence[Died], *, permanent: bool, boot_deaths: int, chance: float, keep: bool = False
) -> Again | GiveUp:
    """`deaths`: the present one is the last; `boot_deaths`: in a row, unready and not killed; `chance`: from 0 to 1;
    `keep`: never give it up."""
    recent = [death for death in deaths if deaths[-1].at_s - death.at_s <= budget.window_s]
    unexplained = [death for death in recent if not death.explained]
    if permanent:
        return GiveUp("a permanent error")
    if not keep:
        if boot_deaths >= BOOT_LIMIT:
            return GiveUp(f"it died {boot_deaths} times in a row before it was ready")
        if not budget.limit or len(unexplained) > budget.limit:
            return GiveUp(f"it died {len(unexplained)} times within {budget.window_s:g} s and nothing explains it")
    explained = deaths[-1].explained
    most_s = min(EXPLAINED_MOST_S, budget.backoff_most_s) if explained else budget.backoff_most_s
    counted = len(recent if explained else unexplained)
    pause_s = min(most_s, budget.backoff_s * 2.0 ** min(30, counted - 1))
    return Again(pause_s * (0.5 + chance / 2))


def is_explained(*, was_ready: bool, worked: bool, ready_for_s: float, killed: bool, hung: bool) -> bool:
    """Did this life do something, or did somebody outside end it? A hang with nothing to do is no explanation."""
    return killed or (was_ready and (worked or (ready_for_s > STEADY_S and not hung)))
