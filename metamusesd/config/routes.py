"""Options of routing: which tier serves a job, and what tenants may do. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metamusesd.config.option import option

POLICIES = ("upgrade_ok", "degrade_ok", "prefer", "strict")


@dataclass(frozen=True, slots=True)
class Routing:
    """Which tier serves a job that names none."""

    policy: str = option(
        "upgrade_ok",
        "Whether other tiers may take a job when it would be finished sooner there: heavier ones (upgrade_ok), lighter "
        "ones, too (degrade_ok), only while the wanted one has no worker (prefer), or never (strict). A request's "
        "`tier_policy` goes before it.",
        choices=POLICIES,
    )
    fallback: dict[str, Any] = option(
        {}, 'By tier: the tiers that stand in for it, in order, instead of the heavier ones: { math = ["heavy"] }.'
    )
    margin: float = option(
        0.2, "How much sooner another tier must be finished to take a job, as a share of the wanted tier's time.",
        least=0, most=10,
    )  # fmt: skip
    escalate: bool = option(
        True, "An answer that is empty, repeats itself or breaks its JSON schema is tried again, once, a tier up."
    )
    escalate_logprob: float = option(
        0.0, "So is one whose mean log-probability is below this, if the request asks for logprobs; 0: never.",
        least=-100, most=0,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tenant:
    """What one tenant may do."""

    tiers: list[str] = option([], "The tiers that its jobs may use; empty: all.")
    policy: str = option("", "As routing.policy, for its jobs; empty: that one.", choices=("", *POLICIES))
