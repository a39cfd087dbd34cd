"""Stage 8 · worker · what a request may ask of any model, whichever engine runs it: sizes, biases, defaults, places."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from metamusesd.engines.base import EngineSpec
from metamusesd.errors import ContextOverflow, InvalidRequest, NoCapacity, TemplateFailed
from metamusesd.job import InferenceRequest, Message

BYTES_A_TOKEN = 32  # more than this on average and the prompt cannot fit: tokenizing megabytes takes seconds
SPARE_BYTES = 4096
DEFAULT_TOP_K = 40
T = TypeVar("T")


def given(value: T | None, default: T) -> T:
    """None means: the default."""
    return default if value is None else value


@contextlib.contextmanager
def naming_the_prompt(request: InferenceRequest) -> Iterator[None]:
    """A refusal of the prompt says in which field it stands."""
    try:
        yield
    except (ContextOverflow, TemplateFailed) as refusal:
        refusal.field = "user_query" if request.messages is None else "messages"
        raise


def check_size(messages: Sequence[Message], context: int) -> None:
    """Before anything looks at the texts. Raises ContextOverflow."""
    size = sum(len(message.content.encode("utf-8", "replace")) for message in messages)
    if size > context * BYTES_A_TOKEN + SPARE_BYTES:
        raise ContextOverflow(
            f"the prompt has {size} bytes, too many for a context of {context} tokens", prompt_bytes=size,
            context=context,
        )  # fmt: skip


def room_after(prompt_tokens: int, context: int) -> int:
    """Tokens that an answer may have. Raises ContextOverflow when there is none."""
    if prompt_tokens >= context:
        raise ContextOverflow(
            f"the prompt has {prompt_tokens} tokens; the context holds {context}, the answer included",
            prompt_tokens=prompt_tokens, context=context,
        )  # fmt: skip
    return context - prompt_tokens


def biases(asked: dict[str, float], vocabulary: int, banned: float) -> dict[int, float]:
    """By token; what is to be at -100 or less is `banned`. Raises InvalidRequest."""
    result: dict[int, float] = {}
    for text, offset in asked.items():
        token = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
        if not 0 <= token < vocabulary:
            raise InvalidRequest("params.logit_bias", f"{text!r} is no token id", f"use ids from 0 to {vocabulary - 1}")
        result[token] = banned if offset <= -100.0 else offset
    if sum(offset == banned for offset in result.values()) >= vocabulary:
        raise InvalidRequest("params.logit_bias", "it bans every token", "leave some out")
    return result


def check_slots(spec: EngineSpec, peers: int, held: int) -> None:
    """Whether one more gets in: `peers` of those that are held are of its class or higher, or are not pre-empted.
    Raises NoCapacity."""
    if peers >= spec.slots or held >= spec.slots + spec.reserve_slots:
        raise NoCapacity("every slot is taken", slots=spec.slots)
