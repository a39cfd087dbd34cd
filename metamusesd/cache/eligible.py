"""Stages 3, 10 · dispatcher · what may be looked up, and what may be kept. Pure.

a request   may be looked up and kept: unless its caller, its parameters or its words say otherwise
an answer   may be kept: complete, not empty, not too long; never an error, a cut or a cancelled one
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from metamusesd.job import InferenceRequest, Result
from metamusesd.prompt import messages_of


def _any_of(*phrases: str) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(phrases).replace("'", "['’]") + r")\b", re.IGNORECASE)


_DAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
_SPANS = "morning|afternoon|evening|night|week|weekend|month|quarter|year|season|hour|spring|summer|autumn|fall|winter"
_FIGURES = (
    "time|date|day|week|month|year|weather|temperature|prices?|rates?|president|prime minister|version|status|scores?"
    "|exchange|stock|value|events?|affairs|news|population|ceo|champion"
)
_NOW = _any_of(
    "(?:today|tonight|tomorrow|yesterday)(?:'s)?", "right now", "just now", "at the moment", "currently", "nowadays",
    "these days", "so far", "as of", "up[ -]to[ -]date", "latest", "newest", "most recent", "recently", "breaking",
    "upcoming", f"(?:this|next|last|past|coming) (?:{_SPANS}|{_DAYS}|{_MONTHS}|game|match|election)",
    rf"(?:current|present) (?:\w+ )?(?:{_FIGURES})", "what (?:time|day|date|year|month) is it",
    r"(?:what is|what's) the (?:time|date|day)(?= *(?:now)?\W*$)", "how (?:old|long ago) (?:is|was|am)",
    "days? (?:until|left|ago)", "weather (?:in|like|at|for)", "forecast", "will it (?:rain|snow)",
    "is it (?:raining|snowing|sunny|cold|hot|windy|open|down)", "headlines?", "(?:what is|what's|any) (?:the )?news",
    "(?:stock|share|bitcoin|gold|oil|gas) prices?", "exchange rates?", "live scores?", "who is winning",
    r"in stock(?=\W*$)", "still available", "open now", "near me", "nearby",
)  # fmt: skip
_STATE = (
    "balances?|accounts?|orders?|bills?|invoices?|payments?|subscription|booking|flights?|appointments?|schedule"
    "|calendar|meetings?|e?mails?|inbox|messages?|location|address|name|age|birthday|passwords?|pin|cards?"
    "|transactions?|paycheck|salary|credit|limit|points|miles|reservations?|tickets?|package|parcel|delivery|status"
    "|progress|grades?|results?|files?|documents?|lists?|notes?|reminders?|alarms?|timers?|playlist|cart|profile"
    "|settings|history|phone|devices?"
)
_OF_MINE = _any_of(rf"my (?:\w+ )?(?:{_STATE})")
HOW_TO = re.compile(
    r"^\W*(?:please |so )?(?:how|why|(?:what|which) (?:is|are) the (?:best|easiest|right|safest) \w+"
    r"|(?:can|could|should|may|must|would) i|is it|are there|ways? to|steps? to|tips?)\b",
    re.IGNORECASE,
)
_BEFORE = _any_of(
    "where am i", "who am i", "what did i (?:say|ask|tell|write)", "what have i", "(?:did|have) i (?:just|already)",
    "do you (?:remember|know) (?:me|my|what i)", "remember (?:me|what i)", "what do you know about me",
    "(?:my|our|your|the) (?:previous|last|earlier|first) (?:question|message|answer|reply)",
    r"(?:you|i) (?:just )?(?:said|told|mentioned|asked)(?: \w+)? (?:before|earlier|above)",
)  # fmt: skip
_FRESH = _any_of(
    "flip a coin", "roll (?:a|the) dic?e", "random (?:number|word|name|fact|joke)",
    "another (?:one|joke|story|fact|idea|example)", "something (?:else|new|different)", "try again", "once more",
    "surprise me",
)  # fmt: skip
_AGAIN = re.compile(
    r"^(?:again|more|continue|go on|next|yes|no|ok(?:ay)?|sure|why|how|and|what|really|thanks?)\W*$", re.I
)


@dataclass(frozen=True, slots=True)
class Eligibility:
    """What the caches may do with a job. `reason`: why not everything; empty: they may do all of it."""

    read: bool = True
    write: bool = True
    semantic: bool = True  # questions that only mean the same count, too
    share: bool = True  # an equal job that is under way may be followed
    reason: str = ""


NOTHING = Eligibility(read=False, write=False, semantic=False, share=False)


def eligibility(request: InferenceRequest, domain: str, exact_domains: Collection[str]) -> Eligibility:
    """What the caches may do with this request, whose domain the router has named."""
    if reason := _excluded(request):
        return Eligibility(read=False, write=False, semantic=False, share=False, reason=reason)
    wish = request.cache
    if not wish.read and not wish.write:
        return Eligibility(read=False, write=False, semantic=False, share=False, reason="the caller wants no cache")
    semantic, reason = True, ""
    if domain in exact_domains:
        semantic, reason = False, f"{domain} questions hit only when they are equal"
    elif not (wish.read and wish.write):
        reason = "the caller wants it not to be " + ("read" if not wish.read else "kept")
    return Eligibility(
        read=wish.read, write=wish.write, semantic=semantic, share=wish.read and wish.write, reason=reason
    )


def keepable(result: Result, most_bytes: int) -> bool:
    """Whether the answer of a finished job may be given again."""
    whole = result.state == "done" and result.error is None and result.finish_reason == "stop"
    return whole and not result.from_cache and bool(result.content.strip()) and _bytes(result.content) <= most_bytes


def _excluded(request: InferenceRequest) -> str:
    """Why the caches have nothing to do with it; empty: they may have."""
    turns = messages_of(request)
    text = turns[-1].content.strip()
    if any(turn.role == "tool" for turn in turns):
        return "the answers of tools are in it"
    if turns[-1].role != "user":
        return "its last turn is not the user's"
    if not text or _AGAIN.match(text):
        return "its text asks nothing by itself"
    if request.params.logprobs is not None or request.params.ignore_eos:
        return "its parameters ask about this very run"
    if _NOW.search(text):
        return "the answer depends on the time"
    if _BEFORE.search(text) or (_OF_MINE.search(text) and not HOW_TO.match(text)):
        return "the answer depends on the user's own state"
    if _FRESH.search(text):
        return "it asks for something new"
    return ""


def _bytes(text: str) -> int:
    return len(text.encode())
