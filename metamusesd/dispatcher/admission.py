"""Stage 3 · dispatcher · a job that cannot meet its deadline is refused at once, not after it has waited. Pure.

It is refused when even a lucky one, faster than three of four in its wait and in its run, would be late in every tier
that may serve it: of those refused, hardly any would have made it. Without measurements everybody may try; while the
predictions are not proven, a quarter of the predicted wait has to be too long.
"""

from __future__ import annotations

from collections.abc import Sequence

from metamusesd.dispatcher.forecast import TierForecast
from metamusesd.errors import DeadlineUnmeetable
from metamusesd.queues.base import Claim

LUCKY, USUAL = 0.25, 0.5
UNPROVEN = 0.25


def too_late(
    left_s: float, max_tokens: int | None, tiers: Sequence[tuple[float | None, TierForecast]], claim: Claim
) -> DeadlineUnmeetable | None:
    """`tiers`: the uncorrected wait in each tier that may serve it, and what was measured there. None: it may try."""
    found = []
    for raw_s, forecast in tiers:
        run_s, usual_run_s = forecast.run_s(LUCKY, max_tokens), forecast.run_s(USUAL, max_tokens)
        if raw_s is None or run_s is None or usual_run_s is None:
            return None
        lucky = forecast.factor(LUCKY) if forecast.proven else min(UNPROVEN, forecast.factor(LUCKY))
        if lucky * raw_s + run_s <= left_s:
            return None
        found.append((forecast.factor(USUAL) * raw_s, usual_run_s))
    return _error(left_s, *min(found, key=sum), claim) if found else None


def _error(left_s: float, wait_s: float, run_s: float, claim: Claim) -> DeadlineUnmeetable:
    """`retry_after_s`: when the wait will be short enough; none when the run alone takes too long."""
    passed_ms = claim.claimed_ms - claim.submitted_ms
    fits = run_s <= left_s + passed_ms / 1000
    return DeadlineUnmeetable(
        f"It would be finished {wait_s + run_s - left_s:.1f} s too late"
        + ("." if fits else ": the answer alone takes longer than that."),
        retry_after_s=round(max(0.1, wait_s + run_s - left_s), 1) if fits else None,
        predicted_ms=passed_ms + round((wait_s + run_s) * 1000), deadline_ms=claim.deadline_ms - claim.submitted_ms,
    )  # fmt: skip
