"""Correctness benchmark · bench process · our engine's tokens, beside llama.cpp's own single-sequence class.

    noise          how far llama.cpp's logits move by themselves: other chunks, other neighbours, other attention
    agreement      200 prompts greedily, batches of 1, 4 and 16, against `Llama` along the same path
    perplexity     a fixed text, token by token through the engine and through `Llama`
    leaks          marked prompts in one batch: nobody says another's word, nobody is moved by what others hold
    deterministic  the option of that name: equal to the bit beside any load, and what it costs

One core, nothing pinned; or GPUs (`--gpus 0`), with both sides on them. A difference counts as a disagreement when
`Llama`'s two best logits lie further apart than the noise; nearer ones are close calls, which other chunks might have
decided otherwise as well.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.report import Report
from metamusesd.engines.base import EngineSpec

CASES = ("noise", "agreement", "perplexity", "leaks", "deterministic")
ON_GPU = CASES[:-1]  # the last is refused there
MUST_HOLD = ("real disagreements", "markers of others", "moved beyond the noise", "answers that differ")
MODEL = Path(__file__).parent.parent / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT = 1280
ALL_LAYERS = 999
handles = itertools.count(1)


@dataclass
class Bench:
    """What the cases share."""

    model: Path
    quick: bool
    rounds: int
    report: Report
    gpu_layers: int = 0  # of both sides
    noise: float | None = None  # of a margin, in logits, once it was measured in this run

    def spec(self, slots: int, **changes: Any) -> EngineSpec:
        """An engine of so many slots on this model."""
        values: dict[str, Any] = {"model_path": str(self.model), "slots": slots, "context": CONTEXT}
        values["gpu_layers"] = self.gpu_layers
        return EngineSpec("llamacpp", self.model.stem, **(values | changes))


def run(options: argparse.Namespace) -> Report:
    """The cases one after another; each adds its rows."""
    model = options.model or MODEL
    if not model.is_file():
        raise SystemExit(f"correctness: {model} is missing: `make models` fetches it, or name one with --model")
    report = Report(benchmark="correctness", command=options.command)
    report.notes = [f"{model.name}; one thread"]
    if options.gpus:
        os.environ |= {"CUDA_VISIBLE_DEVICES": options.gpus, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        report.notes.append(f"GPU: {machine.gpus(options.gpus.split(','))}")
    bench = Bench(
        model, options.quick, options.rounds or (1 if options.quick else 3), report, ALL_LAYERS if options.gpus else 0
    )
    for case in options.case or (ON_GPU if options.gpus else CASES):
        if case not in CASES:
            raise SystemExit(f"correctness: there is no case {case!r}; use one of {', '.join(CASES)}")
        importlib.import_module(f"benchmarks.correctness_{case}").run(bench)
    return report


def broken(report: Report) -> bool:
    """Whether something that must hold did not."""
    return any(row.metric in MUST_HOLD for row in report.missed())
