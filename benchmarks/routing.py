"""Routing benchmark · bench process · domain and level of labelled prompts, and what it costs, beside two simple rules.

    quality   accuracy and macro-F1 of domain and level, the two dear mistakes, accuracy by source
    latency   of `analyse`, and of the whole `route`

`--data FILE`: JSON lines {id, query, label_domain, label_level, source}; a label that is null does not count. The file
is read where it lies, and nothing of it is kept. Yardsticks, in the same run:

    length rule    under 60 characters simple, under 300 moderate, else complex; always the most usual domain
    keyword rule   the first of code, reasoning, math whose words the prompt has; levels by words such as explain, prove
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Report, Row, absolute, compare
from metamusesd.dispatcher.router import TierView, route
from metamusesd.job import InferenceRequest
from metamusesd.routing import words
from metamusesd.routing.analysis import DOMAINS, LEVELS, analyse
from metamusesd.tiers import TIERS

CASES = ("quality", "latency")
BARS = {
    "domain accuracy": ">= 0.9", "domain macro-F1": ">= 0.88", "reasoning recall": ">= 0.7",
    "level accuracy": ">= 0.65", "level macro-F1": ">= 0.6", "complex→simple": "<= 0.08", "simple→complex": "<= 0.1",
}  # fmt: skip
LATENCY_BARS = {"analyse p99": "< 1", "route p50": "<= 0.2"}
QUICK_PROMPTS = 200

Found = tuple[str, str]  # domain, level
Rule = Callable[[str], Found]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One labelled prompt; empty labels do not count."""

    query: str
    domain: str
    level: str
    source: str


def run(options: argparse.Namespace) -> Report:
    """Read, judge, report."""
    if options.data is None:
        raise SystemExit("routing: --data FILE is missing: labelled prompts, one JSON object a line")
    prompts = read(options.data)
    if options.quick:
        prompts = random.Random(0).sample(prompts, min(QUICK_PROMPTS, len(prompts)))
    cases, report = options.case or CASES, Report(benchmark="routing", command=options.command)
    if "quality" in cases:
        report.rows += quality(prompts)
    if "latency" in cases:
        report.rows += latency([prompt.query for prompt in prompts], options.rounds or (1 if options.quick else 3))
    sources = len({prompt.source for prompt in prompts})
    report.notes = [f"{len(prompts)} prompts of {options.data.name}, from {sources} sources; no embedding (ADR 20)."]
    return report


def read(path: Path) -> list[Prompt]:
    """The prompts of a file; the source is what stands before the colon."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [
        Prompt(
            row["query"], row.get("label_domain") or "", row.get("label_level") or "",
            str(row.get("source", "")).partition(":")[0],
        )
        for row in rows
    ]  # fmt: skip


def ours(query: str) -> Found:
    """What the router finds."""
    found = analyse(query)
    return found.domain, found.level


def by_length(query: str) -> Found:
    """The longer, the harder."""
    return "general", LEVELS[0 if len(query) < 60 else 1 if len(query) < 300 else 2]


def by_keywords(query: str) -> Found:
    """Lists of words, and a look for numbers, as most routers have them."""
    found = set(re.findall(r"[^\W\d_][\w+#]*", query.casefold()))
    hard = len(found & words.HARD)
    level = LEVELS[2 if hard >= 2 else 1 if hard or found & words.EXPLAINING else 0]
    if "```" in query or found & (words.CODE_SURE | words.LANGUAGES) or len(found & words.CODE_NOUNS) >= 5:
        return "code", level
    if found & words.REASON_SURE or len(found & words.REASON_ORDER) >= 9:
        return "reasoning", level
    sums = len(re.findall(r"\d+", query)) >= 2 and len(found & (words.WORD_PROBLEM | words.MATH_NOUNS)) >= 2
    return ("math" if sums or "$" in query or found & words.MATH_SURE else "general"), level


def quality(prompts: Sequence[Prompt]) -> list[Row]:
    """All figures of all rules."""
    found = {name: [rule(prompt.query) for prompt in prompts] for name, rule in RULES.items()}
    figures = {name: _figures(prompts, each) for name, each in found.items()}
    rows = [
        compare(metric, "all prompts", "share", [(figures["ours"][metric], figures[other][metric])], against=other)
        for other in ("length rule", "keyword rule")
        for metric in figures["ours"]
    ]
    rows += [absolute(metric, "all prompts", "share", [value], bar=BARS[metric])
             for metric, value in figures["ours"].items()]  # fmt: skip
    return rows + _by_source(prompts, found["ours"])


def _figures(prompts: Sequence[Prompt], found: Sequence[Found]) -> dict[str, float]:
    domains = [(prompt.domain, each[0]) for prompt, each in zip(prompts, found, strict=True) if prompt.domain]
    levels = [(prompt.level, each[1]) for prompt, each in zip(prompts, found, strict=True) if prompt.level]
    return {
        "domain accuracy": _share([label == said for label, said in domains]),
        "domain macro-F1": _macro_f1(domains, DOMAINS),
        "reasoning recall": _share([said == "reasoning" for label, said in domains if label == "reasoning"]),
        "level accuracy": _share([label == said for label, said in levels]),
        "level macro-F1": _macro_f1(levels, LEVELS),
        "complex→simple": _share([said == "simple" for label, said in levels if label == "complex"]),
        "simple→complex": _share([said == "complex" for label, said in levels if label == "simple"]),
    }


def _by_source(prompts: Sequence[Prompt], found: Sequence[Found]) -> list[Row]:
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for prompt, (domain, level) in zip(prompts, found, strict=True):
        if prompt.domain:
            right["domain accuracy", prompt.source].append(domain == prompt.domain)
        if prompt.level:
            right["level accuracy", prompt.source].append(level == prompt.level)
    return [
        absolute(metric, f"{source} ({len(hits)})", "share", [_share(hits)])
        for (metric, source), hits in sorted(right.items())
    ]


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else 0.0


def _macro_f1(pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> float:
    scores = []
    for each in classes:
        both = sum(label == said == each for label, said in pairs)
        either = sum(label == each for label, _ in pairs) + sum(said == each for _, said in pairs)
        scores.append(2 * both / either if either else 0.0)
    return sum(scores) / len(scores)


def latency(queries: Sequence[str], rounds: int) -> list[Row]:
    """Milliseconds a prompt, each prompt once a round, on one core."""
    tiers = [TierView(tier, f"model-{tier}") for tier in TIERS]
    asked: dict[str, Callable[[str], object]] = {
        "analyse": analyse,
        "route": lambda query: route(InferenceRequest(user_query=query), tiers),
    }
    rows = []
    for name, work in asked.items():
        work(queries[0])  # reads the weights
        times = [_times_ms(work, queries) for _ in range(rounds)]
        for share, label in ((0.5, "p50"), (0.99, "p99")):
            values = [sorted(each)[min(len(each) - 1, int(len(each) * share))] for each in times]
            metric = f"{name} {label}"
            rows.append(absolute(metric, "all prompts", "ms", values, bar=LATENCY_BARS.get(metric)))
    return rows


def _times_ms(work: Callable[[str], object], queries: Sequence[str]) -> list[float]:
    times = []
    for query in queries:
        started_ns = time.perf_counter_ns()
        work(query)
        times.append((time.perf_counter_ns() - started_ns) / 1e6)
    return times


RULES: dict[str, Rule] = {"ours": ours, "length rule": by_length, "keyword rule": by_keywords}
