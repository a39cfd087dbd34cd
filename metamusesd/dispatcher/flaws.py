"""Stage 10 · dispatcher · what can be seen to be wrong with an answer without understanding it. Pure, cheap.

    empty · repeats itself · breaks its JSON schema's first demand: to be JSON · was improbable to its own model

An answer with a flaw may be tried once a tier up (escalation). None of these proves that it is bad, and an answer
without them may be worse: they find what a small model does when it is lost.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

from metamusesd.job import InferenceRequest

LEAST_WORDS = 40  # before repetition is looked for
DISTINCT_SHARE = 0.3  # of all sequences of four words; less is a loop
TAIL_CHARS = 600
LEAST_PIECE, MOST_PIECE, REPEATS = 4, 150, 4  # characters of a piece, and how often it stands at the end


def flaw(content: str, request: InferenceRequest, logprobs: Sequence[Any] | None, least_logprob: float) -> str:
    """The first flaw of an answer that came to its own end; empty: none is seen. `least_logprob`: 0 asks nothing."""
    params = request.params
    if params.grammar is None and not content.strip():
        return "the answer was empty"
    if params.json_schema is not None and not params.stop and not _is_json(content):
        return "the answer was not the JSON that was asked for"
    if params.grammar is None and params.json_schema is None and _repeats(content):
        return "the answer repeated itself"
    if least_logprob < 0 and logprobs and (mean := _mean_logprob(logprobs)) is not None and mean < least_logprob:
        return f"the answer's mean log-probability was {mean:.2f}"
    return ""


def _is_json(content: str) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _repeats(content: str) -> bool:
    """Its end is the same piece again and again, or it has few different sequences of four words."""
    if len(content) > TAIL_CHARS // 2 and _loops(content.rstrip()[-TAIL_CHARS:]):
        return True
    words = content.split()
    if len(words) < LEAST_WORDS:
        return False
    runs = list(itertools.pairwise(itertools.pairwise(itertools.pairwise(words))))
    return len(set(runs)) < DISTINCT_SHARE * len(runs)


def _loops(tail: str) -> bool:
    """Whether it ends with the same piece, four times in a row. Not a regular expression: those go back and forth for
    a second over a run of spaces, and this is the dispatcher's only loop."""
    for length in range(LEAST_PIECE, MOST_PIECE + 1):
        end = tail[-length * REPEATS :]
        if len(end) == length * REPEATS and end == end[:length] * REPEATS:
            return bool(end.strip())
    return False


def _mean_logprob(logprobs: Sequence[Any]) -> float | None:
    """Of the chosen tokens, as far as they are given: {token, logprob, …} each."""
    given = [each["logprob"] for each in logprobs if isinstance(each, dict) and "logprob" in each]
    return sum(given) / len(given) if given else None
