"""Cache benchmark · bench process · recall and false hits on labelled questions, beside a plain cosine and GPTCache.

The development sets are read where they lie; nothing of them is kept. Ours decides by `metamusesd cache evaluate`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cache_replay import PLAIN
from benchmarks.cache_rows import beside
from benchmarks.report import Row
from metamusesd.commands.evaluate import evaluate
from metamusesd.config import Config

if TYPE_CHECKING:
    from metamusesd.cache.embedder import FastEmbedder

PAIRS, DISTINCT = "cache_dev.jsonl", "cache_distinct_dev.jsonl"
SLICES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "natural": lambda line: line["kind"] == "natural",
    "overlap": lambda line: line["kind"].startswith("overlap"),
    "checklist": lambda line: line["source"].startswith("checklist"),
}
RECALL_BARS = {"natural": ">= 0.25", "checklist": ">= 0.5"}
FALSE_BARS = {"natural": "<= 0.015", "checklist": "<= 0.05"} | dict.fromkeys(
    ("negation", "before-after", "antonym", "number", "role-swap", "and", "or", "and-or"), "<= 0.02"
)
DISTINCT_BARS = {"semantic": "<= 0.02", "daemon": "<= 0.005"}
QUICK_LINES = 120
PLAIN_NAME = f"cosine >= {PLAIN}"  # bars stand in its rows

Judge = Callable[[Sequence[float]], dict[str, list[bool]]]  # cosines → hits by the yardstick's name; or nothing


@dataclass(frozen=True, slots=True)
class Rates:
    """Of the lines of one slice or kind; None: it has none of that label."""

    recall: float | None
    false_hits: float | None


def rates(lines: Sequence[dict[str, Any]], hits: Sequence[bool]) -> Rates:
    """Shares of those that may hit and of those that may not."""
    both: dict[bool, list[bool]] = {True: [], False: []}
    for line, hit in zip(lines, hits, strict=True):
        both[bool(line["same"])].append(hit)
    return Rates(*(sum(each) / len(each) if each else None for each in (both[True], both[False])))


def rows(config: Config, embedder: FastEmbedder, folder: Path, judge: Judge, quick: bool) -> list[Row]:
    """Both protocols. `judge`: what the yardstick says to cosines."""
    lines = _lines(folder / PAIRS)
    lines = lines[:: max(1, len(lines) // QUICK_LINES)] if quick else lines
    ours = _predicted(config, lines, "paraphrase", "semantic", "hit")
    cosines = _cosines(embedder, lines)
    plain = [cosine >= PLAIN for cosine in cosines]
    yardsticks = {PLAIN_NAME: plain, **judge(cosines)}
    found = []
    for slice_, belongs in SLICES.items():
        for label, hits in yardsticks.items():
            found += _pair(f"slice {slice_}", slice_, lines, ours, hits, belongs, label)
    for kind in sorted({str(line["kind"]) for line in lines} - {"natural"}):
        found += _pair(f"kind {kind}", kind, lines, ours, plain, _of_kind(kind))
    return found + _distinct(config, embedder, folder, judge, quick)


def _of_kind(kind: str) -> Callable[[dict[str, Any]], bool]:
    return lambda line: bool(line["kind"] == kind)


def _pair(
    case: str, name: str, lines: list[dict[str, Any]], ours: list[bool], theirs: list[bool],
    belongs: Callable[[dict[str, Any]], bool], label: str = PLAIN_NAME,
) -> list[Row]:  # fmt: skip
    """The row of its recall and the row of its false hits, as far as it has lines for them."""
    chosen = [n for n, line in enumerate(lines) if belongs(line)]
    sides = [rates([lines[n] for n in chosen], [hits[n] for n in chosen]) for hits in (ours, theirs)]
    case, found = f"{case}, {len(chosen)} pairs", []
    recall_bar, false_bar = (bars.get(name) if label == PLAIN_NAME else None for bars in (RECALL_BARS, FALSE_BARS))
    if sides[0].recall is not None:
        values = (sides[0].recall, sides[1].recall)
        found.append(beside("quality: recall", case, "share", [values], label, recall_bar))
    if sides[0].false_hits is not None:
        values = (sides[0].false_hits, sides[1].false_hits)
        found.append(beside("quality: false hits", case, "share", [values], label, false_bar))
    return found


def _distinct(config: Config, embedder: FastEmbedder, folder: Path, judge: Judge, quick: bool) -> list[Row]:
    """Every hit is false."""
    import numpy as np

    lines = _lines(folder / DISTINCT)[: QUICK_LINES if quick else None]
    vectors = np.stack(embedder.embed([line["q"] for line in lines]))
    scores = np.tril(vectors @ vectors.T, -1).max(1)
    plain = [bool(score >= PLAIN) for score in scores]
    yardsticks = {PLAIN_NAME: plain, **judge([float(score) for score in scores])}
    found = []
    for policy, bar in DISTINCT_BARS.items():
        ours = _predicted(config, lines, "distinct", policy, "hit_id")
        for label, hits in yardsticks.items():
            case, pair = f"distinct, policy {policy}, {len(lines)} problems", (_share(ours), _share(hits))
            found.append(
                beside("quality: false hits", case, "share", [pair], label, bar if label == PLAIN_NAME else None)
            )
    return found


def _predicted(config: Config, lines: list[dict[str, Any]], protocol: str, policy: str, field: str) -> list[bool]:
    """By the daemon's own path, in the order of the lines."""
    with tempfile.TemporaryDirectory(prefix="mm-quality-") as folder:
        source, out = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        source.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
        options = argparse.Namespace(file=str(source), protocol=protocol, policy=policy, out=str(out))
        with contextlib.redirect_stdout(io.StringIO()):  # its own table
            evaluate(config, options)
        said = {line["id"]: line[field] for line in _lines(out)}
    return [said[line["id"]] not in (None, False) for line in lines]


def _cosines(embedder: FastEmbedder, lines: Iterable[dict[str, Any]]) -> list[float]:
    return [float(one @ other) for one, other in (embedder.embed([line["a"], line["b"]]) for line in lines)]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)
