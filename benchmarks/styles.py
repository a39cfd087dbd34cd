"""Engine benchmark · bench process · the styles of asking, in the words of both sides next to each other.

`ours` are fields of job.Params, `theirs` fields of llama-server's request body. Every style but "sampled" takes the
likeliest token, in the server's cheapest chain for it (`top_k 1` alone), and none ends before its tokens are out, so
that what a style costs is its rate beside that of "greedy".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

JSON_SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 24,
    "maxItems": 32,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "score": {"type": "integer"}, "open": {"type": "boolean"}},
        "required": ["name", "score", "open"],
        "additionalProperties": False,
    },
}
GRAMMAR = r"""
root ::= line{24,32}
line ::= number ". " word (" " word){3,9} "\n"
number ::= [1-9] [0-9]?
word ::= [A-Za-z] [a-z]{0,11}
"""
STOPS = ["\n\nUser:", "### End", "<|user|>", "That is all there is to say."]
BIAS = {token: -1.5 + token % 7 / 2 for token in range(300, 332)}  # token id → offset
ALTERNATIVES = 5
PENALTIES = {"repeat_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1}
DRAW = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "seed": 7}
ENDLESS = {"ignore_eos": True}
GREEDY = {"temperature": 0.0}
CHEAPEST = {"samplers": ["top_k"], "top_k": 1, "temperature": 0.0}


@dataclass(frozen=True)
class Style:
    """What a request asks for besides its text and its length."""

    ours: dict[str, Any]
    theirs: dict[str, Any]
    stream: bool = True


def schema_style(schema: dict[str, Any]) -> Style:
    """JSON by this schema."""
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return Style(GREEDY | {"json_schema": schema}, CHEAPEST | {"response_format": wanted})


def _greedy(ours: dict[str, Any] | None = None, theirs: dict[str, Any] | None = None, *, stream: bool = True) -> Style:
    return Style(GREEDY | ENDLESS | (ours or {}), CHEAPEST | ENDLESS | (theirs or {}), stream)


STYLES: dict[str, Style] = {
    "greedy": _greedy(),
    "sampled": Style(DRAW | ENDLESS, DRAW | ENDLESS | {"samplers": ["top_k", "top_p", "temperature"]}),
    "penalties": _greedy(PENALTIES, PENALTIES | {"samplers": ["penalties", "top_k"], "repeat_last_n": 512}),
    "logprobs": _greedy({"logprobs": ALTERNATIVES}, {"logprobs": True, "top_logprobs": ALTERNATIVES}),
    "stop strings": _greedy({"stop": STOPS}, {"stop": STOPS}),
    "logit bias": _greedy(
        {"logit_bias": {str(token): value for token, value in BIAS.items()}},
        {"logit_bias": [[token, value] for token, value in BIAS.items()]},
    ),
    "JSON schema": schema_style(JSON_SCHEMA),
    "GBNF grammar": Style(GREEDY | {"grammar": GRAMMAR}, CHEAPEST | {"grammar": GRAMMAR}),
    "not streamed": _greedy(stream=False),
}
