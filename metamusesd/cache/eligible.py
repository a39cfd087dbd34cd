"""Stages 3, 10 · dispatcher · what may be looked up, and what may be kept. Pure.

a request   may be looked up and kept: unless its caller, its parameters or its words say otherwise
an answer   may be kept: complete, not empty, not too long; never an error, a cut or a cancelled one
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from metamusesd.cache.speech import is_personal, passing
from metamusesd.job import InferenceRequest, Result
from metamusesd.prompt import messages_of


@dataclass(frozen=True, slots=True)
class Eligibility:
    """What the caches may do with a job. `reason`: why not everything; empty: they may do all of it."""

    read: bool = True
    write: bool = True
    semantic: bool = True  # questions that only mean the same count, too
    share: bool = True  # an equal job that is under way may be followed
    reason: str = ""


EXACT_FROM = 0.75  # a domain less sure than that is no reason to ask the exact cache alone: the verifier looks, too


def eligibility(
    request: InferenceRequest, domain: str, exact_domains: Collection[str], confidence: float = 1.0
) -> Eligibility:
    """What the caches may do with this request, whose domain the router has named, with this confidence."""
    if reason := _excluded(request):
        return Eligibility(read=False, write=False, semantic=False, share=False, reason=reason)
    wish = request.cache
    if not wish.read and not wish.write:
        return Eligibility(read=False, write=False, semantic=False, share=False, reason="the caller wants no cache")
    semantic, reason = True, ""
    if domain in exact_domains and confidence >= EXACT_FROM:
        semantic, reason = False, f"{domain} questions hit only when they are equal"
    elif wish.scope == "auto" and not request.user_address and is_personal(_last(request)):
        semantic, reason = False, "it speaks of its user, whom nobody names: it hits only when it is equal"
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
    if any(turn.role == "tool" for turn in turns):
        return "the answers of tools are in it"
    if turns[-1].role != "user":
        return "its last turn is not the user's"
    if request.params.logprobs is not None or request.params.ignore_eos:
        return "its parameters ask about this very run"
    if request.cache.scope == "user" and not request.user_address:
        return "it is for its user alone, whom nobody names"
    return passing(turns[-1].content, alone=sum(turn.role != "system" for turn in turns) == 1)


def _last(request: InferenceRequest) -> str:
    return messages_of(request)[-1].content


def _bytes(text: str) -> int:
    return len(text.encode())
