"""Stage 3 · dispatcher, command line · what a prompt asks for: domain, level, and why. Pure, no model call, < 1 ms.

Two linear models over what features.py sees (weights.json, made by training/router.py). In doubt the level goes up,
never down: a prompt is simple only when that is likely, and complex as soon as that is well possible.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

from metamusesd.routing.features import NAMES, look

DOMAINS = ("general", "code", "math", "reasoning")
LEVELS = ("simple", "moderate", "complex")
WEIGHTS_FILE = Path(__file__).with_name("weights.json")
SIMPLE_FROM = 0.55  # this likely, or it is not simple
COMPLEX_FROM = 0.5  # this likely, and it is complex
SURE = 0.55  # a domain less likely than that is a guess
WHY = 3  # how many features are named
_SMALL_SUM = NAMES.index("small_sum")
_HARD_SUM = [
    NAMES.index(name)
    for name in (
        "latex_command",
        "unknown",
        "advanced_maths_count",
        "choices_of_numbers",
        "extremes_count",
        "hard_count",
    )
]


@dataclass(frozen=True, slots=True)
class Analysis:
    """What was found. `score`: 0 (simple) to 1 (complex); `confidence`: of the domain, 0 to 1; `features`: those that
    spoke most for domain and level, with their weight."""

    domain: str
    level: str
    score: float
    confidence: float
    features: tuple[tuple[str, float], ...] = ()

    @property
    def sure(self) -> bool:
        """The domain is more than a guess."""
        return self.confidence >= SURE


@dataclass(frozen=True, slots=True)
class _Weights:
    """By feature: weights of domains, of levels, of levels by domain; by word: of domains, then of levels."""

    features: tuple[tuple[tuple[float, ...], tuple[float, ...], tuple[tuple[float, ...], ...]], ...]
    words: dict[str, tuple[float, ...]]


@functools.cache
def _weights() -> _Weights:
    raw = json.loads(WEIGHTS_FILE.read_text("utf-8"))
    if tuple(raw["features"]) != NAMES:
        raise RuntimeError(f"{WEIGHTS_FILE.name} was made for other features: run `python -m training.router`")
    by_domain = [[tuple(row) for row in block] for block in raw["level_by_domain"]]
    rows = zip(raw["domain"], raw["level"], *by_domain, strict=True)
    features = tuple((tuple(domain), tuple(level), tuple(more)) for domain, level, *more in rows)
    return _Weights(features, {word: tuple(values) for word, values in raw["words"].items()})


def analyse(text: str) -> Analysis:
    """Domain and level of a prompt in any language; an empty one is simple and general."""
    seen, weights = look(text), _weights()
    present = [(index, value) for index, value in enumerate(seen.values) if value]
    known = [found for word in set(seen.words) if (found := weights.words.get(word)) is not None]
    domains = _softmax(_scores(present, weights, known))
    best = max(range(len(DOMAINS)), key=domains.__getitem__)
    levels = _softmax(_level_scores(present, weights, known, domains))
    level = 0 if DOMAINS[best] == "math" and _few_steps(seen.values) else _level(levels)
    return Analysis(
        DOMAINS[best],
        LEVELS[level],
        round(levels[1] / 2 + levels[2], 3),
        round(domains[best], 3),
        _why(present, weights, best, level),
    )


def _scores(present: list[tuple[int, float]], weights: _Weights, known: list[tuple[float, ...]]) -> list[float]:
    a = b = c = d = 0.0
    for index, value in present:
        row = weights.features[index][0]
        a, b, c, d = a + row[0] * value, b + row[1] * value, c + row[2] * value, d + row[3] * value
    for row in known:
        a, b, c, d = a + row[0], b + row[1], c + row[2], d + row[3]
    return [a, b, c, d]


def _level_scores(
    present: list[tuple[int, float]], weights: _Weights, known: list[tuple[float, ...]], domains: list[float]
) -> list[float]:
    mixed = [(place, share) for place, share in enumerate(domains) if share > 0.05]
    a = b = c = 0.0
    for index, value in present:
        _, row, more = weights.features[index]
        a, b, c = a + row[0] * value, b + row[1] * value, c + row[2] * value
        for place, share in mixed:
            row, part = more[place], share * value
            a, b, c = a + row[0] * part, b + row[1] * part, c + row[2] * part
    for row in known:
        a, b, c = a + row[4], b + row[5], c + row[6]
    return [a, b, c]


def _few_steps(values: list[float]) -> bool:
    """A sum in words with three numbers at most has two steps at most: whatever the words are, it is simple."""
    return bool(values[_SMALL_SUM]) and not any(values[place] for place in _HARD_SUM)


def _level(chances: list[float]) -> int:
    if chances[2] >= COMPLEX_FROM:
        return 2
    return 0 if chances[0] >= SIMPLE_FROM else 1


def _softmax(scores: list[float]) -> list[float]:
    highest = max(scores)
    powers = [math.exp(score - highest) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def _why(present: list[tuple[int, float]], weights: _Weights, domain: int, level: int) -> tuple[tuple[str, float], ...]:
    """The features that set this domain and this level most apart from the others."""
    parts = []
    for index, value in present:
        if index:  # not the bias
            row, levels, more = weights.features[index]
            apart = row[domain] - sum(row) / len(row) + (levels[level] + more[domain][level]) / 2
            parts.append((round(apart * value, 2), NAMES[index]))
    return tuple((name, weight) for weight, name in sorted(parts, reverse=True)[:WHY] if weight > 0)
