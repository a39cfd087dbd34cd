"""Stage 0 · a process of its own · requantize a model, and measure what a file costs and what it is worth on this CPU.

    python -m metamusesd.engines.llamacpp.derive …
        quantize SOURCE TARGET FORMAT     exit 0, or 1 with a line on standard error
        speed FILE CORE                   {"prefill", "decode", "batch"} in tokens/s
        quality FILE CORE                 {"perplexity", "tokens"}

A process for each, because llama.cpp aborts where others raise, and because a measurement wants a clean machine. The
text is our own (derive_text.txt), so that perplexities can be compared over time and shipped.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from metamusesd.engines.base import EngineSpec
from metamusesd.engines.llamacpp.native import Context, Model, quantize
from metamusesd.errors import EngineFailed, MetamusesdError

FORMATS = {"Q8_0": 7, "Q4_0": 2, "IQ4_NL": 25}  # llama_ftype; those with fast kernels on CPUs
TEXT = Path(__file__).with_name("derive_text.txt")
CHUNK = 64
WINDOW = 1024  # tokens that the model sees at most
PROMPT, STEPS, BATCH, ROUNDS = 192, 24, 8, 3


def make(source: str, target: str, form: str) -> None:
    """Write `target`. Raises EngineFailed."""
    if not quantize(source, target, FORMATS[form], os.cpu_count() or 1):
        raise EngineFailed(f"{source}: llama.cpp cannot write it as {form}")


def quality(path: str, core: int) -> dict[str, float]:
    """Perplexity over the text, in windows; the first token of a window is only read."""
    os.sched_setaffinity(0, {core})
    model, context = _open(path, WINDOW)
    tokens = model.tokenize(TEXT.read_text("utf-8"))
    losses: list[float] = []
    for start in range(0, len(tokens), WINDOW):
        losses += _losses(context, tokens[start : start + WINDOW])
        context.remove(0)
    return {"perplexity": float(np.exp(np.mean(losses))), "tokens": float(len(losses))}


def _losses(context: Context, tokens: list[int]) -> list[float]:
    """-log p of every token but the first, given those before it."""
    losses: list[float] = []
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        _decode(context, chunk, start, [0] * len(chunk), wanted=1)
        following = tokens[start + 1 : start + 1 + len(chunk)]
        logits = context.logits()[: len(following)].astype(np.float64)
        top = logits.max(axis=1)
        norm = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        losses += list(norm - logits[np.arange(len(following)), following])
    return losses


def speed(path: str, core: int) -> dict[str, float]:
    """Tokens/s on one core: a prompt, one sequence, a batch of BATCH sequences; medians."""
    os.sched_setaffinity(0, {core})
    model, context = _open(path, PROMPT + BATCH * 2 * STEPS * ROUNDS)
    tokens = model.tokenize(TEXT.read_text("utf-8"))[:PROMPT]
    rates: dict[str, list[float]] = {"prefill": [], "decode": [], "batch": []}
    _prefill(context, tokens)  # warm: pages, repacking
    context.remove(0)
    for _ in range(ROUNDS):
        rates["prefill"].append(PROMPT / _timed(lambda: _prefill(context, tokens)))
        rates["decode"].append(STEPS / _timed(lambda: _steps(context, 1)))
        for sequence in range(1, BATCH):
            context.copy(0, sequence, PROMPT)
        context.remove(0, PROMPT)
        rates["batch"].append(STEPS * BATCH / _timed(lambda: _steps(context, BATCH)))
        for sequence in range(BATCH):
            context.remove(sequence)
    return {name: statistics.median(values) for name, values in rates.items()}


def _prefill(context: Context, tokens: list[int]) -> None:
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        _decode(context, chunk, start, [0] * len(chunk), wanted=0)


def _steps(context: Context, sequences: int) -> None:
    for step in range(STEPS):
        _decode(
            context, list(range(1000, 1000 + sequences)), PROMPT + step, list(range(sequences)), wanted=1, together=True
        )


def _decode(
    context: Context, tokens: list[int], position: int, sequences: list[int], *, wanted: int, together: bool = False
) -> None:
    count = len(tokens)
    context.tokens[:count] = tokens
    context.positions[:count] = position if together else np.arange(position, position + count)
    context.sequences[:count] = sequences
    context.wanted[:count] = wanted
    context.wanted[count - 1] = 1
    if code := context.decode(count):
        raise EngineFailed(f"llama_decode answered {code} while measuring")


def _open(path: str, cells: int) -> tuple[Model, Context]:
    spec = EngineSpec(engine="llamacpp", model_name="derive", model_path=path)
    model = Model(spec)
    return model, Context(model, spec, cells, CHUNK, CHUNK)


def _timed(work: Any) -> float:
    begun_s = time.perf_counter()
    work()
    return time.perf_counter() - begun_s


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    try:
        match arguments:
            case ["quantize", source, target, form]:
                make(source, target, form)
            case ["speed", path, core]:
                print(json.dumps(speed(path, int(core))))  # noqa: T201
            case ["quality", path, core]:
                print(json.dumps(quality(path, int(core))))  # noqa: T201
            case _:
                raise EngineFailed(f"{arguments}: not understood")
    except MetamusesdError as error:
        print(error.message, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
