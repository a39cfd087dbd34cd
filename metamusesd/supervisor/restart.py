"""Supervisor · when a child that died starts again. A pure rule: history in, decision out.

permanent error (exit 78, or the child said so)          give up at once BOOT_LIMIT deaths in a row before it was ever
ready      give up: it cannot start more than `limit` deaths within `window_s`               give up: restarts do not
help else                                                     again, after base · 2ⁿ with jitter, n deaths in the
window
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metamusesd.config import Daemon

BOOT_LIMIT = 3


@dataclass(frozen=True, slots=True)
class Policy:
    """The restart budget of one child."""

    limit: int
    window_s: float
    backoff_s: float
    backoff_most_s: float


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
    budget: Policy, deaths_s: Sequence[float], now_s: float, *, permanent: bool, boot_deaths: int, chance: float
) -> Again | GiveUp:
    """`deaths_s`: when it died, the present death included; `boot_deaths`: in a row, unready; `chance`: from 0 to 1."""
    if permanent:
        return GiveUp("a permanent error")
    if boot_deaths >= BOOT_LIMIT:
        return GiveUp(f"it died {boot_deaths} times in a row before it was ready")
    recent = recent_deaths(budget, deaths_s, now_s)
    if len(recent) > budget.limit:
        return GiveUp(f"it died {len(recent)} times within {budget.window_s:g} s")
    pause_s = min(budget.backoff_most_s, budget.backoff_s * 2.0 ** min(30, max(0, len(recent) - 1)))
    return Again(pause_s * (0.5 + chance / 2))


def recent_deaths(budget: Policy, deaths_s: Sequence[float], now_s: float) -> list[float]:
    """The deaths that still count."""
    return [death_s for death_s in deaths_s if now_s - death_s <= budget.window_s]
