"""Cache benchmark · bench process · from the figures of rounds to rows.

Bars are for ours throughout, also where a yardstick stands beside: they are promises, not races. The name of the
yardstick says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from benchmarks.cache_questions import percentile
from benchmarks.report import Row, absolute, compare

KINDS = {
    "exact": "exact hit",
    "short": "semantic hit, <= 16 tokens",
    "long": "semantic hit, <= 64 tokens",
}
OFF = "the same without the cache"

Figures = dict[str, Any]
Rounds = Sequence[tuple[Figures, Figures]]  # ours and the yardstick's; empty: that side did not run


def beside(
    metric: str, case: str, unit: str, pairs: Sequence[tuple[float | None, float | None]], name: str,
    bar: str | None = None,
) -> Row:  # fmt: skip
    """A row whose bar is for ours, with the yardstick's figures beside it if there are any."""
    made = compare(metric, case, unit, pairs, bar=bar)
    if made.yardstick is None:
        return made
    return msgspec.structs.replace(made, yardstick_name=f"{name}; bar: ours" if bar else name)


def embedder_rows(short_ms: list[float], long_ms: list[float]) -> list[Row]:
    """What no semantic lookup can be faster than."""
    return [
        absolute(f"the embedder alone, {tokens}, {part}", "in-process, no store", "ms", [percentile(took_ms, share)])
        for tokens, took_ms in (("<= 16 tokens", short_ms), ("<= 64 tokens", long_ms))
        for part, share in (("p50", 0.5), ("p99", 0.99))
    ]


def latency_rows(case: str, rounds: Rounds, searches: dict[str, float]) -> list[Row]:
    """All rows of one layout. `searches`: percentiles of the store's search alone, `p50` and `p99`."""
    bars = {"short_p99": "<= 10"}
    keys = [(kind, part) for kind in ("short", "long") for part in ("p50", "p99")]
    found = [
        _beside(f"{KINDS[kind]}, {part}", case, rounds, f"{kind}_{part}", bars.get(f"{kind}_{part}"))
        for kind, part in keys
    ]
    if not searches:
        return found
    ours = [mine for mine, _ in rounds]
    found += [absolute(f"the store's search alone, {part}", case, "ms", [took]) for part, took in searches.items()]
    found += [_alone(f"exact hit, {part}", case, ours, f"exact_{part}") for part in ("p50", "p99")]
    found.append(_alone("exact lookup alone, p50", case, ours, "recall_p50"))
    found.append(_alone("exact lookup alone, p99", case, ours, "recall_p99", "<= 1"))
    return [*found, *_stages(case, ours), *_misses(case, ours), *_truth(case, ours)]


def growth_rows(case: str, small: Rounds, large: Rounds) -> list[Row]:
    """How the p50 grows with the entries, each round by itself."""
    return [
        beside(
            f"{KINDS[kind]}: growth of p50", case, "times",
            [tuple(_grown(little[side], big[side], f"{kind}_p50") for side in (0, 1))  # type: ignore[misc]
             for little, big in zip(small, large, strict=True)],
            _version(large), "<= 2",
        )
        for kind in ("short", "long")
    ]  # fmt: skip


def _grown(little: Figures, big: Figures, key: str) -> float | None:
    return big[key] / little[key] if little and big else None


def _stages(case: str, ours: list[Figures]) -> list[Row]:
    name = "lookup stage in the dispatcher"
    found = [_alone(f"{name}, {label}, p50", case, ours, f"{kind}_stage") for kind, label in KINDS.items()]
    return [*found, _alone(f"{name}, miss, mean", case, ours, "miss_stage")]


def _misses(case: str, ours: list[Figures]) -> list[Row]:
    pairs = [(each["miss_p50"], each["off_p50"]) for each in ours]
    return [
        compare("a job that misses, p50", case, "ms", pairs, against=OFF),
        _alone("what a miss adds to a job, p50", case, ours, "miss_extra"),
    ]


def _truth(case: str, ours: list[Figures]) -> list[Row]:
    found = [
        absolute(
            f"{label}: hits of those asked", case, "share", [each[f"{kind}_share"] for each in ours], bar=">= 0.99"
        )
        for kind, label in KINDS.items()
    ]
    wrong = [sum(each[f"{kind}_wrong"] for kind in KINDS) + each["miss_hits"] for each in ours]
    return [*found, absolute("wrong hits of all the above", case, "hits", wrong, bar="<= 0")]


def _alone(metric: str, case: str, ours: list[Figures], key: str, bar: str | None = None) -> Row:
    return absolute(metric, case, "ms", [each[key] for each in ours], bar=bar)


def _beside(metric: str, case: str, rounds: Rounds, key: str, bar: str | None = None) -> Row:
    pairs = [(mine.get(key), theirs.get(key)) for mine, theirs in rounds]
    return beside(metric, case, "ms", pairs, _version(rounds), bar)


def _version(rounds: Rounds) -> str:
    return next((f"{theirs['version']}, in-process" for _, theirs in rounds if theirs), "")
