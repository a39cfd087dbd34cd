"""Correctness benchmark · bench process · case agreement: our tokens against what `Llama` says along the same path.

The engine answers all prompts greedily; then `Llama` is asked, for each token of each answer, which one it would have
taken after the same tokens. So every token counts, and not only those before a first difference.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from benchmarks.correctness import CONTEXT, Bench
from benchmarks.correctness_crowd import Answer, Crowd
from benchmarks.correctness_lab import Reference
from benchmarks.correctness_noise import limit_of
from benchmarks.correctness_prompts import requests
from benchmarks.report import Row, absolute
from metamusesd.engines.llamacpp import load

BATCHES = {"f16": (1, 4, 16), "q8_0": (16,)}  # by the type of the KV cache, which is the same on both sides
CELLS = 768  # the longest prompt fits, and not much more
ANSWER_TOKENS = 16
QUICK_EVERY = 10  # prompts: one of so many


@dataclass
class Tally:
    """What the comparison found."""

    counts: Counter[str] = field(default_factory=Counter)
    turned: float = 0.0  # the largest margin at which the engine took another token


def run(bench: Bench) -> None:
    """Rows by batch size; then with KV in 8 bit."""
    for kind, batches in BATCHES.items():
        reference = Reference(bench.model, CONTEXT, kind=kind, gpu_layers=bench.gpu_layers)
        for slots in batches:
            _compare(bench, reference, slots, kind)
        reference.close()


def _compare(bench: Bench, reference: Reference, slots: int, kind: str) -> None:
    asked = requests(ANSWER_TOKENS)[:: QUICK_EVERY if bench.quick else 1]
    engine = load(bench.spec(slots, context=CELLS, kv_cells=CELLS, kv_cache_type=kind))
    crowd = Crowd(engine)
    answers = crowd.answers(asked)
    limit, ends = limit_of(bench, engine.info.architecture), engine._ends  # type: ignore[attr-defined]
    engine.close()
    tally = Tally()
    for answer in answers:
        judge(reference, answer, limit, ends, tally)
    case = f"{len(asked)} prompts, batch {slots}" + ("" if kind == "f16" else f", {kind} KV")
    bench.report.rows += [absolute(name, case, "", [count]) for name, count in crowd.counts.items()]
    bench.report.rows += _rows(tally, case, limit)


def judge(reference: Reference, answer: Answer, limit: float, ends: frozenset[int], tally: Tally) -> None:
    """Every token of one answer, its end included where the model chose it."""
    whole, start = np.concatenate([answer.prompt, answer.tokens]), len(answer.prompt)
    alike = True
    for place in range(start, len(whole) + answer.ended):
        best, margin = reference.verdict(whole[:place])
        same = best in ends if place == len(whole) else best == whole[place]
        tally.counts["tokens"] += 1
        tally.counts["decided"] += margin > limit
        tally.counts["equal"] += same
        if not same:
            alike = False
            tally.turned = max(tally.turned, margin)
            tally.counts["close calls" if margin <= limit else "real disagreements"] += 1
    tally.counts["answers"] += alike


def _rows(tally: Tally, case: str, limit: float) -> list[Row]:
    counts = tally.counts
    return [
        absolute("tokens compared", case, "tokens", [counts["tokens"]]),
        absolute("equal", case, "tokens", [counts["equal"]]),
        absolute(f"led by more than the noise ({limit:.2f})", case, "tokens", [counts["decided"]]),
        absolute("close calls that fell differently", case, "tokens", [counts["close calls"]]),
        absolute("largest margin of those", case, "logits", [tally.turned]),
        absolute("real disagreements", case, "tokens", [counts["real disagreements"]], bar="<= 0"),
        absolute("answers equal from end to end", case, "answers", [counts["answers"]]),
    ]
