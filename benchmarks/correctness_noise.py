"""Correctness benchmark · bench process · case noise: the same 900 tokens, computed in other ways.

Each way is compared with chunks of 512 in an empty cache, over all positions: how far a logit moves, how far the margin
moves that the likeliest token has before the second (which is what decides a greedy token), how often another token is
the likeliest. The same for the 140 short prompts, in many languages.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.correctness import Bench
from benchmarks.correctness_lab import BATCH, Lab, Rows
from benchmarks.correctness_prompts import requests, text
from benchmarks.report import absolute
from metamusesd.engines.llamacpp.native import Model

TOKENS, QUICK_TOKENS = 900, 200
SHORT, BEHIND, CELLS = 140, 90, 512  # prompts, tokens, tokens
CHUNKS = (256, 64, 32, 8, 1)
BESIDE = 7  # sequences that decode in the same batch
BESIDE_TOKENS = 100
MARGIN_NOISE = {"llama": 1.12, "gemma3": 1.24}  # by architecture, as this case measured it; for the cases that need it

Change = tuple[str, int, Rows]  # how it was computed, the position of the first row, the logits


def run(bench: Bench) -> None:
    """Rows by attention and precision of the KV cache. The largest change of a margin with f16 or f32, which are the
    usual, becomes the bench's noise."""
    model = Model(bench.spec(1))
    tokens = [model.bos() or 0, *model.tokenize(text())][: QUICK_TOKENS if bench.quick else TOKENS]
    bases: dict[tuple[bool, str], Rows] = {}
    worst = 0.0
    for flash, kind in ((True, "f16"), (False, "f16"), (False, "f32"), (True, "f32"), (True, "q8_0")):
        name = f"{'flash' if flash else 'plain'} attention, {kind} KV"
        lab = Lab(model, flash=flash, kind=kind, cells=4 * TOKENS)
        base = bases[flash, kind] = lab.prompt(0, tokens, BATCH)
        for way, start, rows in _ways(lab, tokens) if (flash, kind) != (True, "f32") else ():
            change = _compare(bench, f"{name}: {way}", base[start:], rows)
            worst = worst if kind == "q8_0" else max(worst, change)
        lab.close()
    for left, right, way in (
        ((True, "f16"), (False, "f16"), "plain for flash attention"),
        ((False, "f16"), (False, "f32"), "f32 for f16 KV, plain attention"),
        ((True, "f16"), (True, "f32"), "f32 for f16 KV, flash attention"),
    ):
        worst = max(worst, _compare(bench, way, bases[left], bases[right]))
    _compare(bench, "q8_0 for f16 KV, flash attention", bases[True, "f16"], bases[True, "q8_0"])
    worst = max(worst, _prompts(bench, model))
    bench.noise = None if bench.quick else worst  # of so few tokens it would come out too small
    model.close()


def _prompts(bench: Bench, model: Model) -> float:
    """Short prompts by both kinds of attention, alone and behind others: other texts than one story."""
    prompts = [
        [model.bos() or 0, *model.tokenize(request.user_query or "")]
        for request in requests(1)[: SHORT // (10 if bench.quick else 1)]
    ]
    found: dict[tuple[bool, int], Rows] = {}
    for flash in (True, False):
        lab = Lab(model, flash=flash, cells=CELLS)
        for behind in (0, BEHIND):
            rows = []
            for tokens in prompts:
                lab.clear()
                if behind:
                    lab.prompt(1, prompts[0] * (behind // len(prompts[0])), BATCH)
                rows.append(lab.prompt(0, tokens, BATCH))
            found[flash, behind] = np.concatenate(rows)
        lab.close()
    base = found.pop((True, 0))
    return max(
        _compare(
            bench,
            f"{len(prompts)} short prompts: {'flash' if flash else 'plain'} attention, behind {behind} others",
            base,
            rows,
        )
        for (flash, behind), rows in found.items()
    )


def limit_of(bench: Bench, architecture: str) -> float:
    """The noise of a margin: measured in this run, else as it was measured before."""
    return bench.noise if bench.noise is not None else MARGIN_NOISE[architecture]


def _ways(lab: Lab, tokens: list[int]) -> Iterator[Change]:
    others = tokens[::-1]
    for chunk in CHUNKS:
        lab.clear()
        yield f"chunks of {chunk}", 0, lab.prompt(0, tokens, chunk)
    for length in (100, len(tokens)):
        lab.clear()
        lab.prompt(1, others[:length], BATCH)
        yield f"behind {length} tokens of another", 0, lab.prompt(0, tokens, BATCH)
    lab.clear()
    half = len(tokens) // 2
    lab.prompt(1, tokens[:half] + others[half:], half)
    lab.copy(1, 0, half)
    copied = lab.prompt(0, tokens, BATCH, start=half)
    lab.clear()
    lab.prompt(0, tokens[:half], half)
    alone = lab.prompt(0, tokens, BATCH, start=half)
    yield "behind a copied prefix and its owner", half, copied
    yield "the same cut, alone", half, alone
    lab.clear()
    yield _beside(lab, tokens)


def _beside(lab: Lab, tokens: list[int]) -> Change:
    """The last tokens one by one, in batches with those of others."""
    start = len(tokens) - BESIDE_TOKENS
    lab.prompt(0, tokens[:start], BATCH)
    for other in range(1, BESIDE + 1):
        lab.prompt(other, tokens[other : other + 64], BATCH)
    rows = [
        lab.decode(
            [(0, start + turn, tokens[start + turn])]
            + [(other, 64 + turn, tokens[turn]) for other in range(1, BESIDE + 1)]
        )[0]
        for turn in range(BESIDE_TOKENS)
    ]
    return f"decoded beside {BESIDE} others", start, np.stack(rows)


def _compare(bench: Bench, case: str, base: Rows, other: Rows) -> float:
    """Add the rows of one way; the largest change of a margin comes back."""
    best = np.argpartition(base, base.shape[1] - 2, axis=1)[:, -2:]
    pairs = np.take_along_axis(base, best, 1), np.take_along_axis(other, best, 1)
    before, after = (pair[:, 1] - pair[:, 0] for pair in pairs)
    change, logits = np.abs(before - after), np.abs(base - other)
    flips = base.argmax(1) != other.argmax(1)
    bench.report.rows += [
        absolute("logit, largest change", case, "logits", [float(logits.max())]),
        absolute("logit, mean change", case, "logits", [float(logits.mean())]),
        absolute("margin, largest change", case, "logits", [float(change.max())]),
        absolute("margin, median change", case, "logits", [float(np.median(change))]),
        absolute("another is the likeliest", case, "share", [float(flips.mean())]),
        absolute("largest margin that was turned", case, "logits", [float(np.abs(before[flips]).max(initial=0.0))]),
    ]
    return float(change.max())
