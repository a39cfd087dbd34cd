"""Stage 3 · dispatcher · from what a prompt asks for to the tiers that may serve it, best first. Pure.

    the request names a tier, or a model ──► that
    analysis: a specialist's domain      ──► that specialist, then the heaviest general tier
              general, by level          ──► fast, medium or heavy, then by policy

    policy      besides the tier that is wanted
    strict      nobody
    prefer      heavier ones, while the wanted one has no worker at all
    upgrade_ok  heavier ones, when a job would be finished sooner there (spread.py decides that)
    degrade_ok  heavier and lighter ones, likewise

A tier that is not enabled falls through, whatever the policy: by [routing] fallback, else to the next heavier one, else
to the heaviest that is there; the route's reason says so. In doubt about the domain, one tier up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from metamusesd.config import Config
from metamusesd.errors import InvalidRequest, UnknownTier
from metamusesd.job import InferenceRequest
from metamusesd.route import Route
from metamusesd.routing.analysis import LEVELS, Analysis, analyse
from metamusesd.tiers import GENERAL_TIERS


@dataclass(frozen=True, slots=True)
class TierView:
    """What the router must know of one enabled tier. Hosts may serve one tier with different models: one view each."""

    name: str
    model: str


@dataclass(frozen=True, slots=True)
class TenantRules:
    """What holds for one tenant. `tiers`: those that its jobs may use; none: all."""

    tiers: frozenset[str] = frozenset()
    policy: str = ""


@dataclass(frozen=True, slots=True)
class RoutingRules:
    """The part of the configuration that the router needs."""

    policy: str = "upgrade_ok"
    fallback: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tenants: Mapping[str, TenantRules] = field(default_factory=dict)
    margin: float = 0.2  # how much sooner another tier must be finished
    escalate: bool = False
    escalate_logprob: float = 0.0


NO_TENANT_RULES = TenantRules()


def views_of(config: Config) -> list[TierView]:
    """The enabled tiers of one host, a view for each of their models."""
    return [TierView(name, model) for name, tier in config.enabled_tiers().items() for model in tier.models]


def routing_rules_of(config: Config) -> RoutingRules:
    """From [routing] and [tenants]."""
    return RoutingRules(
        config.routing.policy,
        {tier: tuple(others) for tier, others in config.routing.fallback.items()},
        {name: TenantRules(frozenset(tenant.tiers), tenant.policy) for name, tenant in config.tenants.items()},
        config.routing.margin,
        config.routing.escalate,
        config.routing.escalate_logprob,
    )


def route(request: InferenceRequest, tiers: Sequence[TierView], rules: RoutingRules = RoutingRules()) -> Route:
    """The tiers that may serve the request, best first. Raises UnknownTier when a forced one is not enabled, and
    InvalidRequest when the tenant may not use it."""
    tenant = rules.tenants.get(request.tenant, NO_TENANT_RULES)
    policy = request.tier_policy or tenant.policy or rules.policy
    names = tuple(dict.fromkeys(tier.name for tier in tiers))
    allowed = tuple(name for name in names if not tenant.tiers or name in tenant.tiers)
    if request.tier is not None:
        return _forced_tier(request.tier.lower(), names, allowed, request.tenant)
    if request.model is not None:
        return _forced_model(request.model, [tier for tier in tiers if tier.name in allowed])
    if not allowed:
        raise UnknownTier("tenant", f"no tier that {request.tenant!r} may use is enabled", "see [tenants]")
    found = analyse(query_of(request))
    wanted, doubt = _wanted(found)
    accepted, note = _accept(wanted, allowed, policy, rules.fallback)
    return Route(
        tiers=accepted, domain=found.domain, complexity=found.level, score=found.score, confidence=found.confidence,
        features=found.features, reason=f"{found.domain}, {found.level}{doubt}{note}", requested_tier=wanted,
        policy=policy,
    )  # fmt: skip


def acceptable(wanted: str, tiers: Sequence[TierView], rules: RoutingRules) -> tuple[str, ...]:
    """The tiers that may serve a prompt that wants this one, best first, whoever's it is."""
    names = tuple(dict.fromkeys(tier.name for tier in tiers))
    return _accept(wanted, names, rules.policy, rules.fallback)[0]


def query_of(request: InferenceRequest) -> str:
    """The text that is analysed: the user's last words."""
    if request.messages is None:
        return request.user_query or ""
    return next((message.content for message in reversed(request.messages) if message.role == "user"), "")


def _wanted(found: Analysis) -> tuple[str, str]:
    """(the tier that such a prompt wants, what the reason has to add)."""
    if found.domain != "general":
        return found.domain, ""
    level = LEVELS.index(found.level)
    if not found.sure and level == 0:
        return GENERAL_TIERS[1], "; unsure of the domain: one tier up"
    return GENERAL_TIERS[level], ""


def _forced_tier(tier: str, names: tuple[str, ...], allowed: tuple[str, ...], tenant: str) -> Route:
    if tier not in names:
        raise UnknownTier("tier", f"{tier} is not enabled here", f"use one of {', '.join(names)}")
    if tier not in allowed:
        raise InvalidRequest("tier", f"tenant {tenant!r} may not use {tier}", f"use one of {', '.join(allowed)}")
    return Route(tiers=(tier,), reason="the request names the tier", requested_tier=tier, policy="strict")


def _forced_model(model: str, tiers: Sequence[TierView]) -> Route:
    others = {tier.name for tier in tiers if tier.model != model}  # any host may take a job of its tier
    accepted = tuple(dict.fromkeys(tier.name for tier in tiers if tier.model == model and tier.name not in others))
    if not accepted:
        known = ", ".join(sorted({tier.model for tier in tiers}))
        raise UnknownTier("model", f"no enabled tier serves {model!r} alone", f"use one of {known}")
    return Route(tiers=accepted, reason="the request names the model", requested_tier=accepted[0])


def _accept(
    wanted: str, names: tuple[str, ...], policy: str, fallback: Mapping[str, tuple[str, ...]]
) -> tuple[tuple[str, ...], str]:
    """(the tiers, what the reason has to add)."""
    order = _order(wanted, names, policy, fallback.get(wanted))
    note = "" if order[0] == wanted else f"; {wanted} is not enabled{_instead(wanted, order[0])}"
    return (order[:1] if policy == "strict" else order), note


def _instead(wanted: str, served: str) -> str:
    return f", the heaviest tier {served} serves it" if wanted not in GENERAL_TIERS and served in GENERAL_TIERS else ""


def _order(wanted: str, names: tuple[str, ...], policy: str, fallback: tuple[str, ...] | None) -> tuple[str, ...]:
    """The wanted tier if it is there, then who may stand in for it; never empty."""
    own = (wanted,) if wanted in names else ()
    general = [tier for tier in GENERAL_TIERS if tier in names and tier != wanted]
    if fallback is not None:
        others = [tier for tier in fallback if tier in names and tier != wanted]
    elif wanted in GENERAL_TIERS:
        place = GENERAL_TIERS.index(wanted)
        others = [tier for tier in general if GENERAL_TIERS.index(tier) > place]
        lighter = [tier for tier in reversed(general) if GENERAL_TIERS.index(tier) < place]
        if policy == "degrade_ok" or not (own or others):
            others += lighter if policy == "degrade_ok" else lighter[:1]
    else:
        others = general[-1:]
        if policy == "degrade_ok":
            others += reversed(general[:-1])
    return own + tuple(others) or tuple(general[-1:]) or names[-1:]
