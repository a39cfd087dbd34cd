"""Stage 8 · worker · measure at load what decoding and prefill cost, which warms the caches as well.

The quickest of some tries counts, for a busy neighbour only ever makes them slower. Takes half a second or so, for it
is part of every boot: a large model is measured with fewer batch sizes, and the rest is learnt on the way.
"""

from __future__ import annotations

import time

import numpy as np

from metamusesd.engines.llamacpp.native import Context
from metamusesd.engines.llamacpp.rates import Rates

LIMIT_S = 0.5
TRIES = 3
PROMPTS = (8, 32)  # two chunk sizes: what a chunk costs, and what a token
LARGE_PROMPTS = (32, 512)  # on a GPU, where a short one costs what a long one does
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def calibrate(context: Context, rates: Rates, slots: int, vocabulary: int, mixes: bool) -> None:
    """Fill `rates` from trial batches; the KV cache is empty before and after. `mixes`: it is a GPU."""
    started = time.perf_counter()
    _timed(context, 1, 0, vocabulary)
    measured_s: dict[int, float] = {}
    for size in SIZES:
        if size > slots or (measured_s and time.perf_counter() - started > LIMIT_S):
            break
        measured_s[size] = min(_timed(context, size, turn, vocabulary) for turn in range(TRIES))
    for sequence in range(slots):
        context.remove(sequence)
    lengths = [min(size, context.limit, context.cells) for size in (LARGE_PROMPTS if mixes else PROMPTS)]
    chunks_s = {size: min(_prompt_s(context, size, vocabulary) for _ in range(2)) for size in lengths}
    for sequence in range(slots):
        context.remove(sequence)
    rates.calibrate(measured_s, chunks_s, slots)


def _timed(context: Context, size: int, position: int, vocabulary: int) -> float:
    """One token for each of `size` sequences."""
    for sequence in range(size):
        context.remove(sequence, position)
    context.tokens[:size] = np.arange(size) % vocabulary
    context.positions[:size] = position
    context.sequences[:size] = np.arange(size)
    context.wanted[:size] = 1
    return _decode_s(context, size)


def _prompt_s(context: Context, size: int, vocabulary: int) -> float:
    """The time of a prompt chunk of `size` tokens."""
    context.remove(0)
    context.tokens[:size] = np.arange(size) % vocabulary
    context.positions[:size] = np.arange(size)
    context.sequences[:size] = 0
    context.wanted[:size] = 0
    context.wanted[size - 1] = 1
    return _decode_s(context, size)


def _decode_s(context: Context, size: int) -> float:
    begun = time.perf_counter()
    if context.decode(size) == 0:
        context.logits()
    return time.perf_counter() - begun
