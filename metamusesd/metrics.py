"""Counters and histograms in the board's metric page: the dispatcher counts, the supervisor renders.

    page = MetricsPage(board.metric_words)
    page.count("generation_tokens_total", "fast", 12)
    page.observe("time_to_first_token_seconds", "fast/high", 0.084)
    page.render()                                             Prometheus text

The page has one writer (the dispatcher) and lives in shared memory, so values survive a dispatcher's restart. Words are
laid out in the order of FAMILIES, one run of words for every combination of label values:

    counter    ┌ value ┐        histogram  ┌ bucket 0 ┬ … ┬ bucket over the last bound ┬ sum in µs ┐

A label is the family's label values joined by "/"; a value that is not in the table, or is missing, counts as "other".
A name that is not in the table is a KeyError. Names follow vLLM's vocabulary under the prefix `metamusesd_`.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from metamusesd.board import QUEUES
from metamusesd.tiers import TIERS

PREFIX = "metamusesd_"
OTHER = "other"
MICRO = 1_000_000
CLASSES = ("critical", "high", "normal", "low")
WAITS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
STEPS_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)

_BY_TIER = {"tier": TIERS}
_BY_TIER_AND_CLASS = {"tier": TIERS, "class": CLASSES}


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with all its label values. `bounds_s` makes it a histogram of seconds."""

    name: str
    help: str
    labels: Mapping[str, tuple[str, ...]]
    bounds_s: tuple[float, ...] = ()

    @property
    def words(self) -> int:
        """Words that one combination of label values takes."""
        return len(self.bounds_s) + 2 if self.bounds_s else 1

    def combinations(self) -> Iterator[tuple[str, ...]]:
        """All label values, `other` included, in the order of the page."""
        return itertools.product(*((*values, OTHER) for values in self.labels.values()))


_STATES = ("done", "failed", "cancelled", "expired", "dead")
_RESTARTS = (
    "worker_died", "worker_killed", "hung", "dispatcher_died", "refused", "lost", "drain", "retired", "leaving",
    "alone", "retry",
)  # fmt: skip
_REFUSALS = ("invalid_request", "unknown_tier", "deadline_unmeetable", "internal_error")

_LOOKUPS = {
    "outcome": ("hit", "miss", "refused", "skipped", "failed"),
    "where": ("exact", "semantic", "flight", "ineligible", "repeated", "away", "late", "failed"),
}

FAMILIES = (
    Family("requests_total", "Jobs that reached a terminal state.", {"state": _STATES}),
    Family("request_success_total", "Answers by finish reason.", {"finished_reason": ("stop", "length", "cache")}),
    Family("request_restarts_total", "Attempts that began again.", {"reason": _RESTARTS}),
    Family("crashes_total", "Jobs under which a worker died.", {"kind": ("crash", "crash_alone", "killed")}),
    Family("refusals_total", "Jobs that no worker was asked to run.", {"code": _REFUSALS}),
    Family("claims_total", "Jobs claimed by queue.", {"queue": QUEUES}),
    Family("aged_claims_total", "Jobs that had waited past their class' limit, by queue.", {"queue": QUEUES}),
    Family("queue_errors_total", "Calls to Redis that failed.", {"kind": ("unavailable", "refused", "full", "fault")}),
    Family("cache_lookups_total", "Lookups in the answer caches, by what came of it and where.", _LOOKUPS),
    Family("cache_kept_total", "Answers that a cache has learnt.", {"cache": ("exact", "semantic")}),
    Family("cache_complaints_total", "Hits of the semantic cache that were reported as wrong.", {}),
    Family("cache_lookup_seconds", "From the route to what the caches say.", _LOOKUPS, STEPS_S),
    Family("prompt_tokens_total", "Prompt tokens processed.", _BY_TIER),
    Family("generation_tokens_total", "Tokens generated.", _BY_TIER),
    Family("prefix_cache_queries_total", "Prompt tokens looked up in workers' prefix caches.", _BY_TIER),
    Family("prefix_cache_hits_total", "Prompt tokens found in workers' prefix caches.", _BY_TIER),
    Family("request_queue_time_seconds", "From submit to the claim for a worker.", _BY_TIER_AND_CLASS, WAITS_S),
    Family("time_to_first_token_seconds", "From submit to the first token.", _BY_TIER_AND_CLASS, WAITS_S),
    Family("e2e_request_latency_seconds", "From submit to the terminal state.", _BY_TIER_AND_CLASS, WAITS_S),
    Family("inter_token_latency_seconds", "Between two tokens of one job.", _BY_TIER, STEPS_S),
    Family("request_prefill_time_seconds", "In prefill.", _BY_TIER, WAITS_S),
    Family("request_decode_time_seconds", "In decode.", _BY_TIER, WAITS_S),
)


class MetricsPage:
    """The page as one process sees it. Only the dispatcher may call `count` and `observe`."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._families: dict[str, Family] = {}
        self._offsets: dict[tuple[str, str], int] = {}
        offset = 0
        for family in FAMILIES:
            self._families[family.name] = family
            for values in family.combinations():
                self._offsets[family.name, "/".join(values)] = offset
                offset += family.words
        if offset > len(words):
            raise ValueError(f"the metrics need {offset} words and the page has {len(words)}")
        self._bounds = {family.name: family.bounds_s for family in FAMILIES if family.bounds_s}

    def count(self, name: str, label: str = "", amount: int = 1) -> None:
        """Add to a counter."""
        offset = self._offsets.get((name, label))
        if offset is None:
            offset = self._resolve(name, label)
        self._words[offset] += amount

    def observe(self, name: str, label: str, seconds: float) -> None:
        """Add one value to a histogram. Negative values count as zero."""
        offset = self._offsets.get((name, label))
        if offset is None:
            offset = self._resolve(name, label)
        bounds, words = self._bounds[name], self._words
        words[offset + bisect_left(bounds, seconds)] += 1
        if seconds > 0:
            words[offset + len(bounds) + 1] += int(seconds * MICRO)

    def value(self, name: str, label: str = "") -> float:
        """A counter's value, or a histogram's sum of seconds."""
        family, offset = self._families[name], self._resolve(name, label)
        return self._words[offset + family.words - 1] / MICRO if family.bounds_s else self._words[offset]

    def render(self) -> str:
        """Everything that was ever counted, as Prometheus text. Combinations that are all zero are left out."""
        return "".join(line for family in FAMILIES for line in self._render(family))

    def _resolve(self, name: str, label: str) -> int:
        given = label.split("/")
        allowed = list(self._families[name].labels.values())
        given += [OTHER] * (len(allowed) - len(given))
        values = (value if value in known else OTHER for value, known in zip(given, allowed, strict=False))
        return self._offsets[name, "/".join(values)]

    def _render(self, family: Family) -> Iterator[str]:
        yield _header(family.name, "histogram" if family.bounds_s else "counter", family.help)
        for values in family.combinations():
            offset = self._offsets[family.name, "/".join(values)]
            words = self._words[offset : offset + family.words].tolist()
            if any(words):
                labels = dict(zip(family.labels, values, strict=True))
                yield from (
                    _histogram(family, labels, words) if family.bounds_s else [_sample(family.name, labels, *words)]
                )


def _histogram(family: Family, labels: dict[str, str], words: list[int]) -> Iterator[str]:
    *buckets, sum_us = words
    running = 0
    for bound, in_bucket in zip((*map(str, family.bounds_s), "+Inf"), buckets, strict=True):
        running += in_bucket
        yield _sample(family.name + "_bucket", {**labels, "le": bound}, running)
    yield _sample(family.name + "_sum", labels, sum_us / MICRO)
    yield _sample(family.name + "_count", labels, running)


def expose(name: str, kind: str, help: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> str:
    """A metric that is computed when it is asked for, as Prometheus text. `kind`: gauge or counter."""
    return _header(name, kind, help) + "".join(_sample(name, labels, value) for labels, value in samples)


def _header(name: str, kind: str, help: str) -> str:
    return f"# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n"


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{PREFIX}{name}{{{shown}}} {value:.15g}\n" if shown else f"{PREFIX}{name} {value:.15g}\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
