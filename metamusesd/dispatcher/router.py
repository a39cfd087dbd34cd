"""Stage 3 · dispatcher · name the domain, the complexity and the acceptable tiers of a request. Pure.

Forced `tier` or `model` first; else by length and by the words that the original service knew. A tier that is not
enabled falls through to the next heavier one, else to the heaviest that is there, and the route's reason says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from metamusesd.errors import UnknownTier
from metamusesd.job import InferenceRequest, Route
from metamusesd.tiers import GENERAL_TIERS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD = re.compile(r"[a-z0-9+#']+")
_CODE_SURE = _words("python javascript typescript rust golang java c++ c# sql regex refactor debug compile traceback")
_CODE_VERBS = _words("write implement code create fix optimize build")
_CODE_NOUNS = _words("function script program class array algorithm code bug api query loop method module")
_MATH = _words("integral derivative equation solve calculate theorem proof matrix probability algebra polynomial")
_REASONING = _words("deduce riddle puzzle syllogism paradox infer")
_COMPLEX = _words(
    "explain philosophical implications analyze analyse compare contrast evaluate essay comprehensive detailed critique"
    " argue consequences synthesize"
)
_MEDIUM = _words("why how describe summarize summarise list plan suggest improve translate rewrite")
_SCAN_CHARS = 4000  # the beginning of a query says enough
LONG_CHARS = 600
MEDIUM_SCORE, COMPLEX_SCORE = 0.35, 0.7


@dataclass(frozen=True, slots=True)
class TierView:
    """What the router must know of one enabled tier. Hosts may serve one tier with different models: one view each."""

    name: str
    model: str


def route(request: InferenceRequest, tiers: Sequence[TierView]) -> Route:
    """The tiers that may serve the request, best first. Raises UnknownTier when a forced one is not enabled."""
    names = tuple(dict.fromkeys(tier.name for tier in tiers))
    if request.tier is not None:
        return _forced_tier(request.tier.lower(), names)
    if request.model is not None:
        return _forced_model(request.model, tiers)
    query = _query(request)
    domain, score = analyse(query)
    complexity = "complex" if score >= COMPLEX_SCORE else "medium" if score >= MEDIUM_SCORE else "simple"
    wanted = domain if domain != "general" else GENERAL_TIERS[("simple", "medium", "complex").index(complexity)]
    accepted, note = _accept(wanted, names)
    reason = f"{domain}, {complexity}{note}"
    return Route(tiers=accepted, domain=domain, complexity=complexity, score=round(score, 2), reason=reason)


def analyse(query: str) -> tuple[str, float]:
    """(domain, complexity from 0 to 1) of a query."""
    words = _WORD.findall(query[:_SCAN_CHARS].lower())
    known = set(words)
    score = min(0.4, len(query) / LONG_CHARS * 0.4)
    score += min(0.8, 0.35 * len(known & _COMPLEX)) + (0.15 if known & _MEDIUM and len(words) > 6 else 0.0)
    if known & _CODE_SURE or (known & _CODE_VERBS and known & _CODE_NOUNS):
        return "code", min(1.0, score + 0.35)
    if known & _MATH:
        return "math", min(1.0, score + 0.35)
    if known & _REASONING:
        return "reasoning", min(1.0, score + 0.35)
    return "general", min(1.0, score)


def _forced_tier(tier: str, names: tuple[str, ...]) -> Route:
    if tier not in names:
        raise UnknownTier("tier", f"{tier} is not enabled here", f"use one of {', '.join(names)}")
    return Route(tiers=(tier,), reason="the request names the tier", requested_tier=tier)


def _forced_model(model: str, tiers: Sequence[TierView]) -> Route:
    others = {tier.name for tier in tiers if tier.model != model}  # any host may take a job of its tier
    accepted = tuple(tier.name for tier in tiers if tier.model == model and tier.name not in others)
    if not accepted:
        known = ", ".join(sorted({tier.model for tier in tiers}))
        raise UnknownTier("model", f"no enabled tier serves {model!r}", f"use one of {known}")
    return Route(tiers=accepted, reason="the request names the model")


def _accept(wanted: str, names: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """The wanted tier and the next heavier one; (tiers, what the reason has to add)."""
    general = [tier for tier in GENERAL_TIERS if tier in names]
    if wanted not in GENERAL_TIERS:
        if wanted in names:
            return (wanted, *general[-1:]), ""
        return (general[-1:] and tuple(general[-1:])) or names[-1:], f"; {wanted} is not enabled"
    place = GENERAL_TIERS.index(wanted)
    heavier = tuple(tier for tier in general if GENERAL_TIERS.index(tier) >= place)[:2]
    note = "" if wanted in names else f"; {wanted} is not enabled"
    return heavier or tuple(general[-1:]) or names[-1:], note


def _query(request: InferenceRequest) -> str:
    if request.messages is None:
        return request.user_query or ""
    return next((message.content for message in reversed(request.messages) if message.role == "user"), "")
