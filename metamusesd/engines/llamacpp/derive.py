"""Stage 0 · a process of its own · requantize a model, and measure what that costs in quality.

    python -m metamusesd.engines.llamacpp.derive …
        quantize SOURCE TARGET FORMAT     exit 0, or 1 with a line on standard error
        quality FILE CORES                {"perplexity", "tokens"}; cores as 0,1

A process for each, because llama.cpp aborts where others raise. The text is our own (derive_text.txt), so that
perplexities can be compared over time and shipped. Speed is measured as for any model: engines/measure.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from metamusesd.engines.base import EngineSpec
from metamusesd.engines.llamacpp.formats import FORMATS
from metamusesd.engines.llamacpp.native import Context, Model, quantize
from metamusesd.errors import EngineFailed, MetamusesdError

TEXT = Path(__file__).with_name("derive_text.txt")
CHUNK = 64
WINDOW = 1024  # tokens that the model sees at most


def make(source: str, target: str, form: str) -> None:
    """Write `target`. Raises EngineFailed."""
    if not quantize(source, target, FORMATS[form].file_type, os.cpu_count() or 1):
        raise EngineFailed(f"{source}: llama.cpp cannot write it as {form}")


def quality(path: str, cores: set[int]) -> dict[str, float]:
    """Perplexity over the text, in windows; what begins a window is only read."""
    os.sched_setaffinity(0, cores)
    spec = EngineSpec(engine="llamacpp", model_name="derive", model_path=path, threads=len(cores))
    model = Model(spec)
    context = Context(model, spec, WINDOW, CHUNK, CHUNK)
    first = [] if (bos := model.bos()) is None else [bos]  # without it a model that wants one is far off
    tokens, length = model.tokenize(TEXT.read_text("utf-8")), WINDOW - len(first)
    losses: list[float] = []
    for start in range(0, len(tokens), length):
        losses += _losses(context, [*first, *tokens[start : start + length]])
        context.remove(0)
    return {"perplexity": float(np.exp(np.mean(losses))), "tokens": float(len(losses))}


def _losses(context: Context, tokens: list[int]) -> list[float]:
    """-log p of every token but the first, given those before it."""
    losses: list[float] = []
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        _decode(context, chunk, start)
        following = tokens[start + 1 : start + 1 + len(chunk)]
        logits = context.logits()[: len(following)].astype(np.float64)
        top = logits.max(axis=1)
        norm = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        losses += list(norm - logits[np.arange(len(following)), following])
    return losses


def _decode(context: Context, tokens: list[int], position: int) -> None:
    """Compute the next tokens of the only sequence, with the logits of each."""
    count = len(tokens)
    context.tokens[:count] = tokens
    context.positions[:count] = np.arange(position, position + count)
    context.sequences[:count] = 0
    context.wanted[:count] = 1
    if code := context.decode(count):
        raise EngineFailed(f"llama_decode answered {code} while measuring")


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    try:
        match arguments:
            case ["quantize", source, target, form]:
                make(source, target, form)
            case ["quality", path, cores]:
                print(json.dumps(quality(path, {int(core) for core in cores.split(",")})))  # noqa: T201
            case _:
                raise EngineFailed(f"{arguments}: not understood")
    except MetamusesdError as error:
        print(error.message, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
