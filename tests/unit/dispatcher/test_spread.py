"""Which tiers' queues a job is put in."""

from __future__ import annotations

import pytest

from metamusesd.dispatcher.spread import spread
from metamusesd.route import Outlook


def fast(wait_s: float | None, run_s: float | None = 2.0, workers: bool = True) -> Outlook:
    return Outlook(tier="fast", wait_s=wait_s, run_s=run_s, workers=workers)


def medium(wait_s: float | None, run_s: float | None = 3.0, workers: bool = True) -> Outlook:
    return Outlook(tier="medium", wait_s=wait_s, run_s=run_s, workers=workers)


@pytest.mark.parametrize(
    ("home", "other", "policy", "tiers", "says"),
    [
        (fast(0.0), medium(0.0, 0.1), "upgrade_ok", ("fast",), ""),  # a place at home: whatever the others could do
        (fast(5.0), medium(0.0), "upgrade_ok", ("fast", "medium"), "busy for about 5.0 s"),
        (fast(5.0), medium(0.0), "degrade_ok", ("fast", "medium"), "medium would be sooner"),
        (fast(5.0), medium(0.0), "prefer", ("fast",), ""),
        (fast(5.0), medium(0.0), "strict", ("fast",), ""),
        (fast(1.2), medium(0.0), "upgrade_ok", ("fast",), ""),  # 3.0 against 3.2: less than the margin
        (fast(5.0), medium(0.0, workers=False), "upgrade_ok", ("fast",), ""),
        (fast(5.0, workers=False), medium(0.0), "prefer", ("fast", "medium"), "fast has no worker now"),
        (fast(5.0, workers=False), medium(0.0), "strict", ("fast",), ""),
        (fast(5.0), medium(None), "upgrade_ok", ("fast",), ""),
        (fast(None), medium(0.0), "upgrade_ok", ("fast", "medium"), "nobody knows how long"),
        (fast(None), medium(1.0), "upgrade_ok", ("fast",), ""),
        (fast(5.0, None), medium(1.0), "upgrade_ok", ("fast", "medium"), ""),  # only the waits are known
    ],
)
def test_another_tier_joins_for_a_gain(
    home: Outlook, other: Outlook, policy: str, tiers: tuple[str, ...], says: str
) -> None:
    """A job waits for another tier, too, when it would be finished sooner there, and its policy allows it."""
    found, why = spread([home, other], policy, 0.2)
    assert found == tiers
    assert says in why and bool(why) == (len(tiers) > 1)
