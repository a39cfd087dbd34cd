"""Agreement benchmark · bench process · do both engines say the same, greedily, on the same file?

Each prompt is asked of llama.cpp and of mistral.rs, one at a time on one core, with two log-probabilities a token. Up
to the first difference their contexts are equal; there it is looked up how sure llama.cpp was: the distance of its two
best tokens, in logits. Kernels round differently, so a difference at a close call is to be expected; one where
llama.cpp was sure would be a mistake of one of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import Report, absolute, compare
from metamusesd.config import DEMO_MODEL
from metamusesd.engines.base import Engine, EngineSpec, Finished, Task, Token
from metamusesd.engines.choice import make_engine
from metamusesd.job import InferenceRequest, Params, Priority

TOKENS = 24
CLOSE = 1.1  # logits that llama.cpp differs from itself by, when the batch is cut another way
END = "(end)"
PROMPTS = (
    "Name three colours.",
    "Who wrote Hamlet?",
    "What is the capital of France?",
    "Count from one to ten.",
    "Explain gravity to a child.",
    "Write a haiku about the sea.",
    "What is 17 + 25?",
    "List the days of the week.",
    "Translate 'good morning' into French.",
    "Give me a recipe for pancakes.",
    "Write a Python function that adds two numbers.",
    "Why is the sky blue?",
    "Tell me a short story about a fox.",
    "What does a lighthouse keeper do?",
    "Which planet is the largest?",
    "Describe a quiet morning in one sentence.",
)


@dataclass(frozen=True)
class Answer:
    """Token by token: its text, its log-probability, and the distance of the two best ones."""

    words: list[str]
    logprobs: list[float]
    margins: list[float]
    prompt_tokens: int
    decode_s: float  # of all tokens but the first


@dataclass(frozen=True)
class Side:
    """What one engine said and cost. `private_mib`: memory that its load took and that no other process shares."""

    answers: list[Answer]
    load_s: float
    private_mib: float

    @property
    def rate(self) -> float:
        return sum(len(each.logprobs) - 1 for each in self.answers) / sum(each.decode_s for each in self.answers)


@dataclass(frozen=True)
class Pair:
    """One prompt's two answers, and how many tokens are equal at their beginning."""

    prompt: str
    ours: Answer
    other: Answer

    @property
    def equal(self) -> int:
        pairs = zip(self.ours.words, self.other.words, strict=False)
        return next((place for place, (one, two) in enumerate(pairs) if one != two), self.compared)

    @property
    def compared(self) -> int:
        return min(len(self.ours.words), len(self.other.words))

    @property
    def differs(self) -> bool:
        return self.equal < self.compared

    @property
    def shifts(self) -> list[float]:
        """How far apart the two log-probabilities of each common token are."""
        pairs = zip(self.ours.logprobs, self.other.logprobs, strict=False)
        return [abs(one - two) for one, two in list(pairs)[: self.equal]]


def run(options: argparse.Namespace) -> Report:
    """Ask both, and compare."""
    report = Report(benchmark="agreement", command=options.command)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    prompts = PROMPTS[:4] if options.quick else PROMPTS
    ours, other = _ask("llamacpp", prompts), _ask("mistralrs", prompts)
    pairs = [Pair(*each) for each in zip(prompts, ours.answers, other.answers, strict=True)]
    _rows(report, pairs)
    against = "mistral.rs"
    report.rows += [
        compare("decode rate", "one sequence, one core", "tokens/s", [(ours.rate, other.rate)], against=against),
        compare("load", "with a first answer", "s", [(ours.load_s, other.load_s)], against=against),
        compare("private memory", "of the load", "MiB", [(ours.private_mib, other.private_mib)], against=against),
    ]
    report.notes += [_line(pair) for pair in pairs]
    return report


def _ask(engine: str, prompts: tuple[str, ...]) -> Side:
    before_mib, started_s = _private_mib(), time.perf_counter()
    path = os.path.join(os.environ.get("MODELS_DIR", "models"), DEMO_MODEL)
    made = make_engine(EngineSpec(engine, "smollm2", path, slots=1, reserve_slots=0, context=512))
    load_s, private_mib = time.perf_counter() - started_s, _private_mib() - before_mib
    answers = [_answer(made, handle, prompt) for handle, prompt in enumerate(prompts)]
    made.close()
    return Side(answers, load_s, private_mib)


def _private_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def _answer(engine: Engine, handle: int, prompt: str) -> Answer:
    params = Params(temperature=0.0, max_tokens=TOKENS, logprobs=2)
    request = InferenceRequest(user_query=prompt, params=params)
    engine.admit(engine.prepare(Task(handle, request, Priority.NORMAL)))
    entries: list[dict[str, Any]] = []
    end = Finished(handle)
    while engine.busy():
        for event in engine.step():
            if isinstance(event, Token):
                entries += event.logprobs or []
            else:
                end = event
    words = [str(entry["token"]) for entry in entries] + ([END] if end.reason == "stop" else [])
    margins = [entry["top"][0]["logprob"] - entry["top"][1]["logprob"] for entry in entries]
    return Answer(words, [entry["logprob"] for entry in entries], margins, end.prompt_tokens, end.decode_ms / 1000)


def _rows(report: Report, pairs: list[Pair]) -> None:
    differences = [pair for pair in pairs if pair.differs]
    margins = [_margin(pair.ours, pair.equal) for pair in differences]
    known = [margin for margin in margins if margin is not None]
    shifts = [shift for pair in pairs for shift in pair.shifts]
    usual = [margin for pair in pairs for margin in pair.ours.margins]
    same_prompt = sum(pair.ours.prompt_tokens == pair.other.prompt_tokens for pair in pairs)
    report.rows += [
        absolute("prompts", "asked", "", [len(pairs)]),
        absolute("prompts", "of equal length in tokens", "", [same_prompt]),
        absolute("answers", "equal to the end", "", [len(pairs) - len(differences)]),
        absolute("tokens", "compared", "", [sum(pair.compared for pair in pairs)]),
        absolute("tokens", "equal before the first difference", "", [sum(pair.equal for pair in pairs)]),
        absolute("log-probability of a common token", "apart, median", "nats", [statistics.median(shifts)]),
        absolute("log-probability of a common token", "apart, at most", "nats", [max(shifts)]),
        absolute("llama.cpp's margin", "all its tokens, median", "logits", [statistics.median(usual)]),
        absolute("llama.cpp's margin", "at first differences, median", "logits", [_median(known)]),
        absolute("llama.cpp's margin", "at first differences, at most", "logits", [max(known, default=None)],
                 bar=f"<= {CLOSE}"),
    ]  # fmt: skip


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _margin(answer: Answer, place: int) -> float | None:
    return answer.margins[place] if place < len(answer.margins) else None


def _line(pair: Pair) -> str:
    if not pair.differs:
        return f"{pair.prompt} – {pair.equal} equal tokens, to the end"
    place = pair.equal
    margins = [_margin(answer, place) for answer in (pair.ours, pair.other)]
    ours, other = ("the end" if margin is None else f"{margin:.2f}" for margin in margins)
    return (
        f"{pair.prompt} – {place} equal tokens of {pair.compared}, then llama.cpp {pair.ours.words[place]!r} "
        f"(margin {ours}), mistral.rs {pair.other.words[place]!r} (margin {other})"
    )
