"""Correctness benchmark · bench process · case perplexity: a fixed text, forced token by token.

The text stands as the answer to a short prompt. Our side: the engine decodes it in its own batches, while a sampler
that chooses nothing notes how likely each next token of the text was. The other side: `Llama`, a token at a time. What
`Llama` makes of the same text in chunks of 64 tells how much of a difference is rounding. The same again with KV in 8
bit on both sides, and 8 bit beside 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.correctness import CONTEXT, Bench
from benchmarks.correctness_crowd import Crowd
from benchmarks.correctness_lab import Lab, Reference
from benchmarks.correctness_prompts import requests, text
from benchmarks.report import absolute, compare
from metamusesd.engines.llamacpp import load
from metamusesd.engines.llamacpp.native import Model
from metamusesd.engines.llamacpp.sampling import Choice, log_probabilities
from metamusesd.job import InferenceRequest, Params

QUERY = "Tell me about the harbour of Varn."
BAR = "<= 0.1"  # per cent, over the whole text: fewer tokens have more noise than that
QUICK_TOKENS = 150
NEIGHBOURS = 3

Ids = npt.NDArray[np.int32]


class Forced:
    """Stands where a sampler stands, and always chooses the next token of `tokens`."""

    plain = False
    grammar = None
    choice = Choice(0.0)

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = iter(tokens)
        self.logprobs: list[float] = []

    def pick(self, row: Any, _position: int) -> int:
        token = next(self._tokens)
        self.logprobs.append(log_probabilities(row, token, 0)[0])
        return token

    def accept(self, token: int) -> None: ...


def run(bench: Bench) -> None:
    """A row alone, a row beside others, and one of `Llama` against itself; then what KV in 8 bit changes."""
    prompt, tokens, ours = _ours(bench)
    whole = np.concatenate([prompt, tokens])
    bar = None if bench.quick else BAR
    theirs = _theirs(bench, whole, len(prompt))
    for case, logprobs in ours.items():
        _add(bench, f"our engine, {case}", logprobs, theirs, bar)
    _add(bench, "Llama, in chunks of 64", _chunked(bench, whole, len(prompt)), theirs, None)
    prompt, tokens, eight = _ours(bench, kv_cache_type="q8_0")
    same = _theirs(bench, whole, len(prompt), "q8_0")
    for case, logprobs in eight.items():
        _add(bench, f"our engine, q8_0 KV, {case}", logprobs, same, bar, "Llama with q8_0 KV, a token at a time")
        _add_eight(bench, f"our engine, {case}", logprobs, ours[case])
    _add_eight(bench, "Llama, a token at a time", same, theirs)


def _ours(bench: Bench, **changes: Any) -> tuple[Ids, Ids, dict[str, list[float]]]:
    found: dict[str, list[float]] = {}
    for case, others in (("alone", 0), (f"beside {NEIGHBOURS} others", NEIGHBOURS)):
        engine: Any = load(bench.spec(NEIGHBOURS + 1, context=2 * CONTEXT, **changes))
        crowd = Crowd(engine)
        tokens = np.array(engine._model.tokenize(text()), np.int32)[: QUICK_TOKENS if bench.quick else None]
        params = Params(max_tokens=len(tokens), temperature=0.0)
        handle = crowd.admit(InferenceRequest(user_query=QUERY, params=params))
        assert handle is not None
        sequence = engine._live[engine._orders[handle]]
        prompt = sequence.prepared.prompt
        sequence.sampler = forced = Forced(tokens.tolist())
        waiting = iter(requests(40) * 2)
        while not crowd.ended(handle):
            while len(engine._live) <= others and crowd.admit(next(waiting)) is not None:
                pass
            crowd.step()
        found[case] = forced.logprobs
        engine.close()
    return prompt, tokens, found


def _theirs(bench: Bench, whole: Ids, start: int, kind: str = "f16") -> list[float]:
    reference = Reference(bench.model, 2 * CONTEXT, kind=kind, gpu_layers=bench.gpu_layers)
    rows = (reference.logits(whole[:place]) for place in range(start, len(whole)))
    found = [log_probabilities(row, int(token), 0)[0] for row, token in zip(rows, whole[start:], strict=True)]
    reference.close()
    return found


def _chunked(bench: Bench, whole: Ids, start: int) -> list[float]:
    model = Model(bench.spec(1))
    lab = Lab(model, flash=False, cells=2 * CONTEXT)
    rows = lab.prompt(0, whole.tolist(), 64)
    lab.close()
    model.close()
    return [log_probabilities(rows[place - 1], int(whole[place]), 0)[0] for place in range(start, len(whole))]


def perplexity(logprobs: Sequence[float]) -> float:
    """Of tokens with these log-probabilities."""
    return float(np.exp(-np.mean(logprobs)))


def _add(
    bench: Bench,
    case: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    bar: str | None,
    against: str = "Llama, a token at a time",
) -> None:
    pair = perplexity(ours), perplexity(theirs)
    bench.report.rows += [
        compare("perplexity", case, "", [pair], against=against),
        absolute("off by", case, "%", [abs(pair[0] / pair[1] - 1) * 100], bar=bar),
    ]


def _add_eight(bench: Bench, case: str, eight: Sequence[float], sixteen: Sequence[float]) -> None:
    """What 8 bit did: to the perplexity, and to a token's log-probability, with how sure that average is."""
    change = np.array(eight) - np.array(sixteen)
    case = f"q8_0 for f16 KV, {case}"
    _add(bench, case, eight, sixteen, None, "f16 KV")
    bench.report.rows += [
        absolute("log-probability, mean change", case, "nats", [float(change.mean())]),
        absolute("standard error of that", case, "nats", [float(change.std() / np.sqrt(len(change)))]),
    ]
