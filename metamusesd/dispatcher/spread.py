"""Stages 3, 6 · dispatcher · in whose queues of the acceptable tiers a job is to wait: the first half. Pure.

Its home is the best tier. Another one joins when the job is expected to be finished sooner there, by a margin: then
whichever has a place first takes it. As a home's queue grows, new jobs go to where they end sooner; none waits for a
tier that would only make it later (join the shortest expected delay).
"""

from __future__ import annotations

from collections.abc import Sequence

from metamusesd.route import Outlook

LEAST_GAIN_S = 0.05  # less is noise


def spread(expected: Sequence[Outlook], policy: str, margin: float) -> tuple[tuple[str, ...], str]:
    """(the tiers to wait for, why if they are not the home alone). `expected`: of the acceptable tiers, best first."""
    home, others = expected[0], expected[1:]
    if not others or policy == "strict":
        return (home.tier,), ""
    alive = tuple(each.tier for each in others if each.workers)
    if not home.workers:
        return (home.tier, *alive), f"{home.tier} has no worker now"
    if policy == "prefer":
        return (home.tier,), ""
    joined = tuple(each.tier for each in others if each.workers and _sooner(each, home, margin))
    return (home.tier, *joined), _said(home, joined)


def _sooner(other: Outlook, home: Outlook, margin: float) -> bool:
    if home.wait_s == 0.0:
        return False
    if home.wait_s is None:  # full, and nobody has measured how fast it goes
        return other.wait_s == 0.0
    if other.wait_s is None:
        return False
    here_s, there_s = home.wait_s, other.wait_s
    if home.run_s is not None and other.run_s is not None:
        here_s, there_s = here_s + home.run_s, there_s + other.run_s
    return there_s < here_s * (1 - margin) - LEAST_GAIN_S


def _said(home: Outlook, joined: tuple[str, ...]) -> str:
    if not joined:
        return ""
    wait = "for nobody knows how long" if home.wait_s is None else f"for about {home.wait_s:.1f} s"
    return f"{home.tier} is busy {wait}: {' or '.join(joined)} would be sooner"
