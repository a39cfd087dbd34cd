"""Offline · trains the prompt analysis: `python -m training.router` writes routing/weights.json. Deterministic.

Two linear models over routing/features.py and the words of the corpus, fitted to training/routing/*.jsonl (prompts that
this project wrote; {query, domain, level}):

    domain   softmax regression
    level    softmax regression; every feature has a weight for all domains and one more for each, mixed by the domain's
             probabilities: what makes a puzzle hard is not what makes a program hard

Accelerated proximal descent on the regularized likelihood (Nesterov 1983); the temperatures, which make probabilities
honest, come from five-fold cross-validation on the same corpus: no other data is read. The level's is never below one:
how hard a prompt is other people judge otherwise than who wrote the corpus, so it must not become surer than it is.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metamusesd.routing.analysis import DOMAINS, LEVELS, WEIGHTS_FILE
from metamusesd.routing.features import NAMES, Seen, look

CORPUS = Path(__file__).parent / "routing"
LEAST_PROMPTS = 3  # that have a word, before it gets a weight
WORD_VALUE = 0.5  # of a word that is there; smaller than a feature's: words are regularized harder
FEATURE_L2, WORD_L2 = 3e-3, 1e-2
LEVEL_L2 = 10.0  # times as much for the level: it is a matter of opinion, and the corpus has one opinion only
STEPS = 500
FOLDS = 5

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Corpus:
    """The prompts as matrices. `x`: (prompts, features + words); `domain`, `level`: class numbers."""

    x: Array
    domain: NDArray[np.int64]
    level: NDArray[np.int64]
    words: list[str]

    def part(self, rows: NDArray[np.bool_]) -> Corpus:
        return Corpus(self.x[rows], self.domain[rows], self.level[rows], self.words)


@dataclass(frozen=True)
class Weights:
    """`domain`: (features + words, domains); `level`: (features + words + domains · features, levels)."""

    domain: Array
    level: Array


def read() -> Corpus:
    """The corpus, in the order of its files."""
    rows = [
        json.loads(line) for path in sorted(CORPUS.glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()
    ]
    seen = [look(row["query"]) for row in rows]
    counts = Counter(word for each in seen for word in set(each.words))
    words = sorted(word for word, count in counts.items() if count >= LEAST_PROMPTS)
    return Corpus(
        matrix(seen, words),
        np.array([DOMAINS.index(row["domain"]) for row in rows]),
        np.array([LEVELS.index(row["level"]) for row in rows]),
        words,
    )


def matrix(seen: list[Seen], words: list[str]) -> Array:
    """(prompts, features + words)."""
    place = {word: len(NAMES) + index for index, word in enumerate(words)}
    x = np.zeros((len(seen), len(NAMES) + len(words)))
    for row, each in zip(x, seen, strict=True):
        row[: len(NAMES)] = each.values
        row[[place[word] for word in set(each.words) if word in place]] = WORD_VALUE
    return x


def fit(corpus: Corpus) -> Weights:
    """Both models. Rare classes count for more, so that they are heard; not so much that common ones are lost."""
    penalties = np.concatenate([np.full(len(NAMES), FEATURE_L2), np.full(len(corpus.words), WORD_L2)])
    domain = descend(corpus.x, corpus.domain, len(DOMAINS), penalties, _balance(corpus.domain))
    mixed = (softmax(corpus.x @ domain) + np.eye(len(DOMAINS))[corpus.domain]) / 2
    both = corpus.domain * len(LEVELS) + corpus.level
    level_penalties = LEVEL_L2 * np.concatenate([penalties, np.full(len(DOMAINS) * len(NAMES), 2 * FEATURE_L2)])
    level = descend(crossed(corpus.x, mixed), corpus.level, len(LEVELS), level_penalties, _balance(both))
    return Weights(domain, level)


def _balance(classes: NDArray[np.int64]) -> Array:
    counts = np.bincount(classes).astype(float)
    return np.asarray(counts[classes] ** -0.75)


def crossed(x: Array, domains: Array) -> Array:
    """The level's inputs: x, and its features times the probability of each domain."""
    features = x[:, : len(NAMES)]
    return np.concatenate([x, *(features * domains[:, [index]] for index in range(len(DOMAINS)))], axis=1)


def descend(x: Array, classes: NDArray[np.int64], count: int, penalties: Array, sample: Array) -> Array:
    """Softmax regression, (columns, count): minimizes the weighted mean loss plus the penalties' squares."""
    sample = sample / sample.mean()
    target = np.eye(count)[classes]
    bound = 0.5 * _largest_square(x * np.sqrt(sample)[:, None]) / len(x) + penalties.max()
    weights = ahead = np.zeros((x.shape[1], count))
    momentum = 1.0
    for _ in range(STEPS):
        gradient = x.T @ ((softmax(x @ ahead) - target) * sample[:, None]) / len(x) + penalties[:, None] * ahead
        following = ahead - gradient / bound
        later = (1 + math.sqrt(1 + 4 * momentum * momentum)) / 2
        ahead = following + (momentum - 1) / later * (following - weights)
        weights, momentum = following, later
    return weights


def _largest_square(x: Array) -> float:
    """The square of the largest singular value, a little above it, by power iteration."""
    vector = np.ones(x.shape[1])
    for _ in range(50):
        vector = x.T @ (x @ vector)
        vector /= np.linalg.norm(vector)
    return 1.01 * float(np.linalg.norm(x @ vector) ** 2)


def softmax(scores: Array) -> Array:
    """Row by row."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def cross_validate(corpus: Corpus) -> tuple[Array, Array]:
    """Scores (domain, level) of every prompt, by models that have not seen it."""
    fold = np.random.default_rng(0).integers(0, FOLDS, len(corpus.x))
    domain, level = np.zeros((len(corpus.x), len(DOMAINS))), np.zeros((len(corpus.x), len(LEVELS)))
    for index in range(FOLDS):
        weights, held = fit(corpus.part(fold != index)), fold == index
        domain[held] = corpus.x[held] @ weights.domain
        level[held] = crossed(corpus.x[held], softmax(domain[held])) @ weights.level
    return domain, level


def temperature(scores: Array, classes: NDArray[np.int64]) -> float:
    """The divisor of the scores under which held-out probabilities are most likely (Guo et al. 2017)."""
    tried = [0.3 * 1.05**step for step in range(60)]
    return min(tried, key=lambda each: -float(np.log(softmax(scores / each)[range(len(classes)), classes]).mean()))


def main() -> None:
    """Fit, judge, write."""
    corpus = read()
    domain, level = cross_validate(corpus)
    cooled = temperature(domain, corpus.domain), max(1.0, temperature(level, corpus.level))
    print(f"{len(corpus.x)} prompts, {len(NAMES)} features, {len(corpus.words)} words")
    print(f"held out: domain {np.mean(domain.argmax(1) == corpus.domain):.3f}", end=", ")
    print(f"level {np.mean(level.argmax(1) == corpus.level):.3f}; temperatures {cooled[0]:.2f}, {cooled[1]:.2f}")
    WEIGHTS_FILE.write_text(dump(corpus, fit(corpus), cooled), "utf-8")
    print(f"wrote {WEIGHTS_FILE.name}, {WEIGHTS_FILE.stat().st_size / 1000:.0f} kB")


def dump(corpus: Corpus, weights: Weights, cooled: tuple[float, float]) -> str:
    """The file: one line a feature or word; temperatures are worked into the weights."""
    features, words = len(NAMES), len(corpus.words)
    domain, level = weights.domain / cooled[0], weights.level / cooled[1]
    content: dict[str, Any] = {
        "features": list(NAMES),
        "domain": _rounded(domain[:features]),
        "level": _rounded(level[:features]),
        "level_by_domain": [
            _rounded(level[features + words + index * features :][:features]) for index in range(len(DOMAINS))
        ],
        "words": {
            word: [*_rounded(domain[features + row] * WORD_VALUE), *_rounded(level[features + row] * WORD_VALUE)]
            for row, word in enumerate(corpus.words)
        },
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("],", "],\n") + "\n"


def _rounded(values: Array) -> Any:
    return np.round(values, 3).tolist()


if __name__ == "__main__":
    main()
