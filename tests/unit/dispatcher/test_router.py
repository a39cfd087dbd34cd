"""The router: a pure function from a request and the enabled tiers to a route."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamusesd.dispatcher.router import TierView, route
from metamusesd.errors import UnknownTier
from metamusesd.job import InferenceRequest, Message
from metamusesd.tiers import TIERS

ALL = [TierView(name, f"model-{name}") for name in TIERS]
GENERAL = ALL[:3]
PHILOSOPHY = "Explain the philosophical implications of artificial consciousness"


@pytest.mark.parametrize(
    ("query", "first", "domain", "complexity"),
    [
        ("Hello, how are you?", "fast", "general", "simple"),
        ("Write a function to sort an array", "code", "code", "medium"),
        (PHILOSOPHY, "heavy", "general", "complex"),
        ("Solve the equation x + 2 = 5", "math", "math", "medium"),
        ("What is the capital of France?", "fast", "general", "simple"),
        ("fix this python traceback", "code", "code", "medium"),
    ],
)
def test_known_answers(query: str, first: str, domain: str, complexity: str) -> None:
    """The queries that the original service's tests know are routed as they were there."""
    found = route(InferenceRequest(user_query=query), ALL)
    assert (found.tiers[0], found.domain, found.complexity) == (first, domain, complexity)


@pytest.mark.parametrize(
    ("query", "enabled", "tiers", "says"),
    [
        ("Write a function to sort an array", ["fast", "heavy"], ("heavy",), "code is not enabled"),
        (PHILOSOPHY, ["fast"], ("fast",), "heavy is not enabled"),
        ("Hello, how are you?", ["medium", "heavy"], ("medium", "heavy"), "fast is not enabled"),
        ("Hello, how are you?", ["code"], ("code",), "fast is not enabled"),
        ("Hello, how are you?", ["fast", "medium", "heavy"], ("fast", "medium"), "general, simple"),
    ],
)
def test_falls_through(query: str, enabled: list[str], tiers: tuple[str, ...], says: str) -> None:
    """A tier that is not enabled falls through to one that is, and the reason says so."""
    found = route(InferenceRequest(user_query=query), [view for view in ALL if view.name in enabled])
    assert found.tiers == tiers
    assert says in found.reason


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
