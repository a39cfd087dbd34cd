"""Correctness benchmark · bench process · case deterministic: the option, on and off, under load, and its price.

Some prompts are answered alone, with the log-probabilities of each token and of the second best; then again and again
amid others of random lengths and classes, which come, push in, and are cancelled. Equal means equal to the last bit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from benchmarks.correctness import Bench
from benchmarks.correctness_crowd import Crowd
from benchmarks.correctness_prompts import requests
from benchmarks.report import absolute, compare
from metamusesd.engines.llamacpp import load
from metamusesd.engines.measure import measure
from metamusesd.job import InferenceRequest, Params, Priority

SLOTS, CONTEXT = 4, 1024
PROMPTS, QUICK_PROMPTS = 16, 4
ANSWER_TOKENS = 24
ON = {"deterministic": True}
STREAMS, PROMPT_TOKENS = (1, 4, 8), 384
USUAL: dict[str, Any] = {}


def run(bench: Bench) -> None:
    """Equal answers with and without the option, then the price."""
    source = random.Random(7)
    pool = [_with_logprobs(request) for request in requests(ANSWER_TOKENS)]
    chosen = source.sample(pool, QUICK_PROMPTS if bench.quick else PROMPTS)
    for name, options, bar in (("deterministic", ON, "<= 0"), ("usual", USUAL, None)):
        engine = load(bench.spec(SLOTS, context=CONTEXT, reserve_slots=2, options=options))
        alone = [_amid(Crowd(engine), [request], [], source)[0] for request in chosen]
        different = sum(
            one != other
            for _ in range(bench.rounds)
            for one, other in zip(alone, _amid(Crowd(engine), chosen, pool, source), strict=True)
        )
        engine.close()
        case = f"{name}: {len(chosen)} prompts amid others, {bench.rounds} rounds"
        bench.report.rows.append(absolute("answers that differ", case, "answers", [different], bar=bar))
    _price(bench)


def _with_logprobs(request: InferenceRequest) -> InferenceRequest:
    params = Params(max_tokens=ANSWER_TOKENS, temperature=0.0, logprobs=2, ignore_eos=True)
    return InferenceRequest(user_query=request.user_query, persona=request.persona, params=params)


def _amid(
    crowd: Crowd, requests_: Sequence[InferenceRequest], others: Sequence[InferenceRequest], source: random.Random
) -> list[list[Any]]:
    """The log-probabilities of all tokens of `requests_`, answered while `others` come and go."""
    waiting, given, strangers = list(requests_), list[int](), set[int]()
    while waiting or not all(crowd.ended(handle) for handle in given):
        if waiting and (not others or source.random() < 0.5):
            if (handle := crowd.admit(waiting[0], source.choice(list(Priority)))) is not None:
                given.append(handle)
                waiting.pop(0)
        elif others and (handle := crowd.admit(source.choice(others), source.choice(list(Priority)))) is not None:
            strangers.add(handle)
        if strangers and source.random() < 0.1:
            crowd.engine.cancel(strangers.pop())
        crowd.step()
    for handle in strangers:
        crowd.engine.cancel(handle)
    return [crowd.answer(handle).logprobs for handle in given]


def _price(bench: Bench) -> None:
    """Prompts and streams of both kinds in turn."""
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(bench.rounds):
        exact, usual = _rates(bench, ON), _rates(bench, USUAL)
        for name in usual:
            found.setdefault(name, []).append((exact[name], usual[name]))
    for name, rounds in found.items():
        bench.report.rows.append(compare("rate, deterministic", name, "tok/s", rounds, against="the usual mode"))


def _rates(bench: Bench, options: dict[str, Any]) -> dict[str, float]:
    spec = bench.spec(max(STREAMS), context=CONTEXT, options=options)
    rows = [row for row in measure(spec, [PROMPT_TOKENS], STREAMS) if "tokens_s" in row]
    return {
        f"prompt of {row['prompt']}" if "prompt" in row else f"{row['streams']} streams": row["tokens_s"]
        for row in rows
    }
