"""What may be looked up and what may be kept."""

from __future__ import annotations

from typing import Any

import pytest

from metamusesd.cache.eligible import eligibility, keepable
from metamusesd.cache.speech import is_personal, passing
from metamusesd.job import InferenceRequest, Result, parse_request

ALL = {"code", "math", "reasoning"}


def why_not(query: str, **more: Any) -> str:
    return eligibility(parse_request({"user_query": query, **more}), "general", ALL).reason


PASSING = {
    "it asks for something new": [
        "Generate a password",
        "Generate a UUID",
        "Pick a number between 1 and 10",
        "Roll 2d6",
        "Tell me a joke",
    ],
    "the answer depends on the time": [
        "Tell me the time",
        "Give me the date",
        "What year is this?",
        "What day of the week is it?",
        "Is it Friday?",
        "What is the price of bitcoin?",
        "How much is bitcoin worth?",
        "What is the dollar to euro rate?",
        "What's the score of the Lakers game?",
        "Who won the Super Bowl?",
        "What's happening in Ukraine?",
        "What's on TV?",
        "What's the temperature in Berlin?",
        "Is it going to rain?",
        "Do I need an umbrella?",
        "When is Easter?",
        "How long until New Year?",
        "When is the next bus to town?",
        "How's the traffic downtown?",
        "Is Facebook down?",
        "Is the pharmacy open?",
        "Is the train delayed?",
        "Who is the president of France?",
        "Who is the CEO of Twitter?",
        "Wie spät ist es?",
        "Wie ist das Wetter heute?",
        "¿Qué hora es?",
        "今天天气怎么样？",
        "How long until my package arrives?",
        "days until Christmas",
        "When is my appointment?",
        "What is the weather in Oslo today?",
        "Who won the Super Bowl last night?",
    ],
    "the answer depends on the user's own state": [
        "How much money is in my account?",
        "Why was my payment declined?",
        "How is my order doing?",
        "How many points do I have on my card?",
        "Can I see my order status?",
        "How many unread emails are in my inbox?",
        "Did I pass?",
        "Was I charged twice?",
        "What do I owe?",
        "Why was my order cancelled?",
        "How much is my balance?",
        "How many points are in my account?",
        "How much is left on my gift card?",
        "Is it in my inbox?",
        "Can I see my invoices?",
        "Why is my salary lower than Bob's?",
        "Read my unread emails",
        "What is my name?",
        "Where am I?",
    ],
    "it is an order, and not a question": [
        "Set a timer for 5 minutes",
        "Send Bob a message",
        "Remind me to call Bob",
    ],
    "its text asks nothing by itself": [
        "...",
        "?",
        "👍",
        "and you?",
        "again please",
        "more please",
        "do it again",
        "translate that",
        "explain it simpler",
    ],
}
ORDINARY = [
    "What is a breaking change in semver?",
    "What is a random number generator?",
    "What is the probability to roll a die and get six?",
    "If I flip a coin ten times, what happens?",
    "How old was Mozart when he died?",
    "What is the most recent common ancestor?",
    "Explain the forecast() function in R",
    "Is it hot in the Sahara?",
    "What happened in the last week of June 1940?",
    "How does a nearby star form?",
    "What is the capital of France?",
    "How do I reset my password?",
    "How can I track my parcel?",
    "Why is the sky blue?",
    "What is the best way to learn Spanish?",
    "Who won the world cup in 1998?",
    "What causes rain?",
    "Should I change my name after marriage?",
    "How do I improve my confidence?",
    "What is a good book to read on vacation?",
    "How does photosynthesis work?",
    "Who wrote Hamlet?",
    "How do plants make food?",
    "What is the boiling point of water?",
    "Can dogs eat chocolate?",
    "How long does it take to boil an egg?",
    "How much water should one drink a day?",
    "What are the symptoms of flu?",
    "Is Pluto a planet?",
    "What is the difference between a king and a queen?",
    "How are diamonds made?",
    "Who was the first president of the USA?",
]


@pytest.mark.parametrize(("reason", "query"), [(reason, query) for reason in PASSING for query in PASSING[reason]])
def test_what_passes_is_not_cached(reason: str, query: str) -> None:
    """Time, the user's own state, chance, orders, and what asks nothing: an answer to these fits nobody else, or not
    for long."""
    assert why_not(query) == reason


@pytest.mark.parametrize("query", ORDINARY)
def test_ordinary_questions_are(query: str) -> None:
    """They may be read, kept, shared, and found by what they mean."""
    may = eligibility(InferenceRequest(user_query=query), "general", ALL)
    assert (may.read, may.write, may.semantic, may.share, may.reason) == (True, True, True, True, "")


def test_in_a_conversation_a_turn_need_not_stand_alone() -> None:
    """Its turns are walls: the same conversation has the same answer."""
    turns = [{"role": "user", "content": "Who was Ada?"}, {"role": "assistant", "content": "A countess."}]
    assert why_not("Translate that.") and not why_not("Translate that.", context=turns)


def test_a_user_whom_nobody_names() -> None:
    """What is for its user alone is not cached; what speaks of its user hits only when it is equal."""
    assert "alone" in why_not("Who was Ada?", cache={"scope": "user"})
    may = eligibility(parse_request({"user_query": "Is my dog too fat?"}), "general", ALL)
    assert may.read and may.write and not may.semantic
    assert not why_not("Is my dog too fat?", user_address="u1")


def test_exact_domains_and_wishes() -> None:
    """Code hits only when it is equal; read and write are the caller's; both are needed to share a run."""
    may = eligibility(InferenceRequest(user_query="Sort a list"), "code", ALL)
    assert may.read and may.write and may.share and not may.semantic and "code" in may.reason
    assert eligibility(InferenceRequest(user_query="Sort a list"), "code", set()).semantic
    assert eligibility(InferenceRequest(user_query="Sort a list"), "code", ALL, confidence=0.6).semantic
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


def test_a_long_text_is_its_users_and_read_at_both_ends() -> None:
    """A megabyte must not hold up the dispatcher: the proof's was killed for it, again and again."""
    filler = "words " * 150_000
    assert is_personal(filler) and not passing(filler, alone=True)
    assert passing("What is new today? " + filler, alone=True) and passing(filler + " What is my balance?", alone=True)
