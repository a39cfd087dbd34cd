"""The router: a pure function from a request and the enabled tiers to a route."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamusesd.dispatcher.router import RoutingRules, TenantRules, TierView, route
from metamusesd.errors import InvalidRequest, UnknownTier
from metamusesd.job import InferenceRequest, Message
from metamusesd.tiers import TIERS

ALL = [TierView(name, f"model-{name}") for name in TIERS]
GENERAL = ALL[:3]
PHILOSOPHY = "Explain the philosophical implications of artificial consciousness"


@pytest.mark.parametrize(
    ("query", "first", "domain", "complexity"),
    [
        ("Hello, how are you?", "fast", "general", "simple"),
        ("Write a function to sort an array", "code", "code", "simple"),
        (PHILOSOPHY, "heavy", "general", "complex"),
        ("Solve the equation x + 2 = 5", "math", "math", "simple"),
        ("What is the capital of France?", "fast", "general", "simple"),
        ("fix this python traceback", "code", "code", "simple"),
    ],
)
def test_known_answers(query: str, first: str, domain: str, complexity: str) -> None:
    """The queries that the original service's tests know are routed as they were there."""
    found = route(InferenceRequest(user_query=query), ALL)
    assert (found.tiers[0], found.domain, found.complexity) == (first, domain, complexity)
    assert found.requested_tier == first


@pytest.mark.parametrize(
    ("query", "enabled", "tiers", "says"),
    [
        ("Write a function to sort an array", ["fast", "heavy"], ("heavy",), "code is not enabled, the heaviest tier"),
        (PHILOSOPHY, ["fast"], ("fast",), "heavy is not enabled"),
        ("Hello, how are you?", ["medium", "heavy"], ("medium", "heavy"), "fast is not enabled"),
        ("Hello, how are you?", ["code"], ("code",), "fast is not enabled"),
        ("Hello, how are you?", ["fast", "medium", "heavy"], ("fast", "medium", "heavy"), "general, simple"),
        ("Write a function to sort an array", ["code", "fast", "medium"], ("code", "medium"), "code, simple"),
    ],
)
def test_falls_through(query: str, enabled: list[str], tiers: tuple[str, ...], says: str) -> None:
    """A tier that is not enabled falls through to one that is, and the reason says so."""
    found = route(InferenceRequest(user_query=query), [view for view in ALL if view.name in enabled])
    assert found.tiers == tiers
    assert says in found.reason


@pytest.mark.parametrize(
    ("policy", "query", "tiers"),
    [
        ("strict", "Hello, how are you?", ("fast",)),
        ("prefer", "Hello, how are you?", ("fast", "medium", "heavy")),
        ("upgrade_ok", PHILOSOPHY, ("heavy",)),
        ("degrade_ok", PHILOSOPHY, ("heavy", "medium", "fast")),
        ("strict", PHILOSOPHY, ("heavy",)),
    ],
)
def test_the_policy_says_who_may_help(policy: str, query: str, tiers: tuple[str, ...]) -> None:
    """From the configuration, from the tenant, from the request: the nearest one counts."""
    request = InferenceRequest(user_query=query, tenant="t")
    assert route(request, GENERAL, RoutingRules(policy)).tiers == tiers
    tenants = {"t": TenantRules(policy=policy)}
    assert route(request, GENERAL, RoutingRules("prefer", tenants=tenants)).tiers == tiers
    asked = InferenceRequest(user_query=query, tier_policy=policy)  # type: ignore[arg-type]
    found = route(asked, GENERAL, RoutingRules("prefer"))
    assert (found.tiers, found.policy) == (tiers, policy)


def test_the_fall_back_can_be_said() -> None:
    """[routing] fallback goes before the usual order; a tier that is not enabled is passed over."""
    rules = RoutingRules(fallback={"math": ("reasoning", "medium"), "fast": ("heavy",)})
    views = [view for view in ALL if view.name not in ("math", "reasoning")]
    assert route(InferenceRequest(user_query="Solve the equation x + 2 = 5"), views, rules).tiers == ("medium",)
    assert route(InferenceRequest(user_query="Hello"), ALL, rules).tiers == ("fast", "heavy")


def test_a_tenant_is_held_to_its_tiers() -> None:
    """What it may not use is not there for it; naming it is refused, with what it may use."""
    rules = RoutingRules(tenants={"small": TenantRules(frozenset({"fast", "medium"}))})
    found = route(InferenceRequest(user_query=PHILOSOPHY, tenant="small"), ALL, rules)
    assert found.tiers == ("medium",) and "heavy is not enabled" in found.reason
    with pytest.raises(InvalidRequest, match="may not use heavy") as caught:
        route(InferenceRequest(user_query="hi", tenant="small", tier="heavy"), ALL, rules)
    assert caught.value.field == "tier"
    assert route(InferenceRequest(user_query=PHILOSOPHY, tenant="other"), ALL, rules).tiers[0] == "heavy"


def test_a_forced_tier_is_the_only_one() -> None:
    """`tier` in any case decides alone."""
    found = route(InferenceRequest(user_query="hi", tier="HEAVY"), ALL)
    assert found.tiers == ("heavy",)
    assert found.requested_tier == "heavy"


def test_a_forced_model_names_its_tiers() -> None:
    """`model` leads to every tier that serves it."""
    views = [TierView("fast", "a"), TierView("medium", "b"), TierView("code", "b")]
    assert route(InferenceRequest(user_query="hi", model="b"), views).tiers == ("medium", "code")


@pytest.mark.parametrize(
    "request_", [InferenceRequest(user_query="x", tier="heavy"), InferenceRequest(user_query="x", model="b")]
)
def test_what_nobody_serves_is_a_typed_error(request_: InferenceRequest) -> None:
    """A forced tier or model that is not enabled is an unknown_tier error that names the remedy."""
    with pytest.raises(UnknownTier) as caught:
        route(request_, [TierView("fast", "a")])
    assert caught.value.code == "unknown_tier"
    assert caught.value.remedy


def test_messages_are_read_as_well() -> None:
    """With the OpenAI form the last user message is what is analysed."""
    messages = [Message(role="user", content=PHILOSOPHY), Message(role="user", content="Hello")]
    assert route(InferenceRequest(messages=messages), GENERAL).tiers[0] == "fast"


@given(st.text(), st.sets(st.sampled_from(TIERS), min_size=1))
def test_every_query_finds_an_enabled_tier(query: str, enabled: set[str]) -> None:
    """Whatever the query and whatever is enabled: at least one tier, all of them enabled, none twice."""
    found = route(InferenceRequest(user_query=query), [view for view in ALL if view.name in enabled]).tiers
    assert found
    assert set(found) <= enabled
    assert len(set(found)) == len(found)
