"""Stage 8 · worker · before a new model takes jobs on a reload, it shows what it can: golden prompts, sanity, a pace.

A model that answers nothing, says one thing again and again, misses a golden answer, or is slower than
`models.*.canary_tokens_s`, is refused; the reload goes back to what was before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping

from metamusesd.engines.base import Engine, Event, Task
from metamusesd.errors import CanaryFailed, RequestError
from metamusesd.job import Priority, parse_request
from metamusesd.wire import Finished, Token

OURS = {"Say hello in one short sentence.": "", "Name three colours.": ""}
MOST_TOKENS = 32
LEAST_KINDS = 4  # different characters in an answer of so many:
LONG = 24
SHOWN = 80


def check(engine: Engine, golden: Mapping[str, str], least_tokens_s: float) -> float:
    """Tokens/s of its decoding, over all prompts. Raises CanaryFailed with what was wrong."""
    tokens, seconds = 0, 0.0
    for handle, (prompt, expected) in enumerate((golden or OURS).items(), start=1):
        content, count, took_s = _answer(engine, handle, prompt)
        if problem := _problem(content, expected):
            raise CanaryFailed(f"canary {prompt[:SHOWN]!r}: {problem}")
        tokens, seconds = tokens + count, seconds + took_s
    rate = tokens / seconds if seconds else 0.0
    if seconds and rate < least_tokens_s:
        raise CanaryFailed(f"canary: {rate:.2f} tokens/s; models.*.canary_tokens_s asks for {least_tokens_s:g} or more")
    return rate


def _answer(engine: Engine, handle: int, prompt: str) -> tuple[str, int, float]:
    """(text, tokens after the first, the seconds that they took)."""
    body = {"user_query": prompt, "params": {"temperature": 0, "max_tokens": MOST_TOKENS}}
    text, count, first_s, last_s = "", 0, 0.0, 0.0
    try:
        request = parse_request(json.dumps(body).encode())
        engine.admit(engine.prepare(Task(handle, request, Priority.NORMAL)))
    except RequestError as error:
        raise CanaryFailed(f"canary {prompt[:SHOWN]!r}: the model refuses it: {error}") from error
    for event in _events(engine):
        if isinstance(event, Token):
            last_s = time.perf_counter()
            first_s = first_s or last_s
            text, count = text + event.text, count + event.tokens
        elif event.error is not None:
            raise CanaryFailed(f"canary {prompt[:SHOWN]!r}: {event.error.get('message')}")
    return text, max(0, count - 1), last_s - first_s


def _events(engine: Engine) -> Iterator[Event]:
    while engine.busy():
        for event in engine.step():
            yield event
            if isinstance(event, Finished):
                return


def _problem(content: str, expected: str) -> str:
    said = content.strip()
    if not said:
        return "the answer is empty"
    if len(said) >= LONG and len(set(said)) < LEAST_KINDS:
        return f"the answer is one thing again and again: {said[:SHOWN]!r}"
    if "\N{REPLACEMENT CHARACTER}" in said:
        return f"the answer is not text: {said[:SHOWN]!r}"
    if expected.casefold() not in said.casefold():
        return f"the answer does not contain {expected!r}: {said[:SHOWN]!r}"
    return ""
