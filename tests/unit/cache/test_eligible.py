"""What may be looked up and what may be kept."""

from __future__ import annotations

from typing import Any

import pytest

from metamusesd.cache.eligible import eligibility, keepable
from metamusesd.job import InferenceRequest, Result, parse_request

ALL = {"code", "math", "reasoning"}


def why_not(query: str, **more: Any) -> str:
    return eligibility(parse_request({"user_query": query, **more}), "general", ALL).reason


@pytest.mark.parametrize(
    "query",
    [
        "What is the weather in Oslo today?", "weather in Paris", "What's the time?", "What time is it?",
        "Who is the current president of France?", "latest news about Mars", "What is the stock price of ACME?",
        "Is it raining?", "What happened yesterday?", "How old is the queen?", "days until Christmas",
        "What's the bitcoin price?", "restaurants near me", "Will it rain this weekend?", "What is today’s date?",
    ],
)  # fmt: skip
def test_what_depends_on_the_time_is_not_cached(query: str) -> None:
    """Tomorrow's answer is another one."""
    assert "time" in why_not(query)


@pytest.mark.parametrize(
    "query",
    [
        "What is my balance?", "Show me my last orders", "When is my appointment?", "What is my name?", "Where am I?",
        "Did I already pay?", "What did I ask before?", "Read my unread emails", "List my files",
    ],
)  # fmt: skip
def test_what_depends_on_the_users_state_is_not_cached(query: str) -> None:
    """Nobody but a tool knows it, and it changes."""
    assert "state" in why_not(query)


@pytest.mark.parametrize("query", ["again", "Yes.", "go on", "why?", "Tell me another joke", "Roll a dice", "..."])
def test_what_asks_nothing_by_itself_or_wants_something_new(query: str) -> None:
    """An answer to that fits nobody else."""
    assert why_not(query) or query == "..."


@pytest.mark.parametrize(
    "query",
    [
        "What is the capital of France?", "How do I reset my password?", "How can I track my parcel?",
        "What is the time complexity of quicksort?", "Why is the sky blue?", "What is the best way to learn Spanish?",
        "Who won the world cup in 1998?", "What causes rain?", "Should I change my name after marriage?",
    ],
)  # fmt: skip
def test_ordinary_questions_are(query: str) -> None:
    """They may be read, kept, shared, and found by what they mean."""
    may = eligibility(InferenceRequest(user_query=query), "general", ALL)
    assert (may.read, may.write, may.semantic, may.share, may.reason) == (True, True, True, True, "")


def test_exact_domains_and_wishes() -> None:
    """Code hits only when it is equal; read and write are the caller's; both are needed to share a run."""
    may = eligibility(InferenceRequest(user_query="Sort a list"), "code", ALL)
    assert may.read and may.write and may.share and not may.semantic and "code" in may.reason
    assert eligibility(InferenceRequest(user_query="Sort a list"), "code", set()).semantic
    read_only = eligibility(parse_request({"user_query": "Why?!", "cache": {"write": False}}), "general", ALL)
    assert read_only.reason or (read_only.read and not read_only.write and not read_only.share)


WHOLE = {"request_id": "a", "content": "Paris.", "finish_reason": "stop"}


@pytest.mark.parametrize(
    "change",
    [
        {"state": "failed"}, {"state": "cancelled"}, {"finish_reason": "length"}, {"finish_reason": "cancelled"},
        {"content": ""}, {"content": " \n"}, {"content": "é" * 33}, {"from_cache": True},
        {"error": {"code": "x"}},
    ],
)  # fmt: skip
def test_only_whole_answers_are_kept(change: dict[str, Any]) -> None:
    """Errors, cut, empty and too long answers are not, nor what came from a cache."""
    assert keepable(Result(**WHOLE), 64)
    assert not keepable(Result(**(WHOLE | change)), 64)
