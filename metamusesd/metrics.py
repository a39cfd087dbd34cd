"""Counters, gauges and histograms in the board's metric page: the dispatcher writes, the supervisor renders.

    page = MetricsPage(board.metric_words)
    page.count("generation_tokens_total", "fast", 12)
    page.observe("time_to_first_token_seconds", "fast/high", 0.084)
    page.render()                                             Prometheus text

The page has one writer (the dispatcher) and lives in shared memory, so values survive a dispatcher's restart. Words are
laid out in the order of FAMILIES, one run of words for every combination of label values:

    counter, gauge    ┌ value ┐        histogram  ┌ bucket 0 ┬ … ┬ bucket over the last bound ┬ sum in µs ┐

A label is the family's label values joined by "/"; a value that is not in the table, or is missing, counts as "other".
A name that is not in the table is a KeyError. Names follow vLLM's vocabulary under the prefix `metamusesd_`.

Counters with one label or none show their zeros: a series that begins with its first event hides that event from
`increase()`. Everything else is shown from its first event on.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from metamusesd.board import QUEUES
from metamusesd.tiers import DOMAINS, TIERS

PREFIX = "metamusesd_"
OTHER = "other"
MICRO = 1_000_000
CLASSES = ("critical", "high", "normal", "low")
LEVELS = ("simple", "moderate", "complex")
WAITS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
STEPS_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)

_BY_TIER = {"tier": TIERS}
_BY_TIER_AND_CLASS = {"tier": TIERS, "class": CLASSES}


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with all its label values; none: they come from the configuration. `bounds_s` makes it a histogram of
    seconds, `gauge` a value that may fall."""

    name: str
    help: str
    labels: Mapping[str, tuple[str, ...]]
    bounds_s: tuple[float, ...] = ()
    gauge: bool = False

    @property
    def kind(self) -> str:
        """As Prometheus calls it."""
        return "histogram" if self.bounds_s else "gauge" if self.gauge else "counter"

    @property
    def words(self) -> int:
        """Words that one combination of label values takes."""
        return len(self.bounds_s) + 2 if self.bounds_s else 1

    @property
    def header(self) -> str:
        """The two lines above its samples."""
        return f"# HELP {PREFIX}{self.name} {self.help}\n# TYPE {PREFIX}{self.name} {self.kind}\n"

    def combinations(self) -> Iterator[tuple[str, ...]]:
        """All label values, `other` included, in the order of the page."""
        return itertools.product(*((*values, OTHER) for values in self.labels.values()))


_STATES = ("done", "failed", "cancelled", "expired", "dead")
_RESTARTS = (
    "worker_died", "worker_killed", "hung", "dispatcher_died", "refused", "no_capacity", "lost", "drain", "retired",
    "leaving", "alone", "retry", "escalated", "context_overflow",
)  # fmt: skip
_REFUSALS = ("invalid_request", "unknown_tier", "deadline_unmeetable", "internal_error")
_REAPED = ("requeued", "expired", "timed_out", "rerouted", "woken")
_MOVES = ("upgrade", "downgrade", "sideways")
_LOOKUPS = {
    "outcome": ("hit", "miss", "refused", "skipped", "failed"),
    "where": ("exact", "semantic", "flight", "ineligible", "repeated", "away", "late", "failed"),
}

FAMILIES = (
    Family("requests_total", "Jobs that reached a terminal state here.", {"state": _STATES}),
    Family("request_success_total", "Answers by finish reason.", {"finished_reason": ("stop", "length", "cache")}),
    Family("request_restarts_total", "Attempts that began again; retry: after a retryable error.",
           {"reason": _RESTARTS}),
    Family("crashes_total", "Jobs under which a worker died.", {"kind": ("crash", "crash_alone", "killed")}),
    Family("refusals_total", "Jobs that no worker was asked to run.", {"code": _REFUSALS}),
    Family("claims_total", "Jobs claimed by queue.", {"queue": QUEUES}),
    Family("aged_claims_total", "Jobs that had waited past their class' limit, by queue.", {"queue": QUEUES}),
    Family("reaped_total", "Jobs that a sweep moved on: an expired lease, a passed deadline, a wait past its class' "
           "timeout, no host for their tiers, a pause that is over.", {"kind": _REAPED}),
    Family("queue_errors_total", "Calls to Redis that failed.", {"kind": ("unavailable", "refused", "full", "fault")}),
    Family("leases_held", "Jobs that this dispatcher holds.", _BY_TIER_AND_CLASS, gauge=True),
    Family("leases_running", "Jobs that a worker has, of those that this dispatcher holds.", _BY_TIER_AND_CLASS,
           gauge=True),
    Family("requests_routed_total", "Routes decided, by what the prompt asks for.",
           {"domain": DOMAINS, "level": LEVELS}),
    Family("requests_served_total", "Jobs that a worker brought to an end, by the tier that was wanted and the one "
           "that served.", {"requested_tier": TIERS, "tier": TIERS}),
    Family("tier_moves_total", "Jobs that another tier served than the wanted one: a heavier, a lighter, or a "
           "specialist or its stand-in.", {"move": _MOVES}),
    Family("escalations_total", "Flawed answers that were tried again a tier up, by the tier that gave them.",
           _BY_TIER),
    Family("cache_lookups_total", "Lookups in the answer caches, by what came of it and where.", _LOOKUPS),
    Family("cache_kept_total", "Answers that a cache has learnt.", {"cache": ("exact", "semantic")}),
    Family("cache_complaints_total", "Hits of the semantic cache that were reported as wrong.", {}),
    Family("cache_entries", "Answers in the exact cache.", {}, gauge=True),
    Family("cache_bytes", "Size of the answers in the exact cache.", {}, gauge=True),
    Family("cache_lookup_seconds", "From the route to what the caches say.", _LOOKUPS, STEPS_S),
    Family("prompt_tokens_total", "Prompt tokens processed.", _BY_TIER),
    Family("generation_tokens_total", "Tokens generated.", _BY_TIER),
    Family("prefix_cache_queries_total", "Prompt tokens looked up in workers' prefix caches.", _BY_TIER),
    Family("prefix_cache_hits_total", "Prompt tokens found in workers' prefix caches.", _BY_TIER),
    Family("request_queue_time_seconds", "From submit to the claim for a worker.", _BY_TIER_AND_CLASS, WAITS_S),
    Family("time_to_first_token_seconds", "From submit to the first token.", _BY_TIER_AND_CLASS, WAITS_S),
    Family("e2e_request_latency_seconds", "From submit to the terminal state.", _BY_TIER_AND_CLASS, WAITS_S),
    Family("inter_token_latency_seconds", "Between two tokens of one job.", _BY_TIER_AND_CLASS, STEPS_S),
    Family("request_prefill_time_seconds", "In prefill.", _BY_TIER_AND_CLASS, WAITS_S),
    Family("request_decode_time_seconds", "In decode.", _BY_TIER_AND_CLASS, WAITS_S),
    Family("dispatcher_loop_lag_seconds", "How late the dispatcher's loop came to its heartbeat.", {}, STEPS_S),
)  # fmt: skip


class MetricsPage:
    """The page as one process sees it. Only the dispatcher may call `count`, `set` and `observe`."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._families: dict[str, Family] = {}
        self._offsets: dict[tuple[str, str], int] = {}
        self._templates: dict[int, str] = {}  # by the first word of what was rendered before
        self._plan: list[tuple[Family, list[tuple[int, tuple[str, ...], bool]]]] = []  # what `render` goes through
        offset = 0
        for family in FAMILIES:
            self._families[family.name] = family
            series = []
            for values in family.combinations():
                self._offsets[family.name, "/".join(values)] = offset
                series.append((offset, values, _shows_zero(family, values)))
                offset += family.words
            self._plan.append((family, series))
        if offset > len(words):
            raise ValueError(f"the metrics need {offset} words and the page has {len(words)}")
        self._used = offset
        self._bounds = {family.name: family.bounds_s for family in FAMILIES if family.bounds_s}

    def count(self, name: str, label: str = "", amount: int = 1) -> None:
        """Add to a counter."""
        offset = self._offsets.get((name, label))
        if offset is None:
            offset = self._resolve(name, label)
        self._words[offset] += amount

    def set(self, name: str, values: Mapping[str, int]) -> None:
        """All values of a gauge, by label; what is not named is zero."""
        now: dict[int, int] = {}
        for label, value in values.items():
            offset = self._resolve(name, label)
            now[offset] = now.get(offset, 0) + value
        for each in self._families[name].combinations():
            offset = self._offsets[name, "/".join(each)]
            self._words[offset] = now.get(offset, 0)

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
        """A counter's or gauge's value, or a histogram's sum of seconds."""
        family, offset = self._families[name], self._resolve(name, label)
        return self._words[offset + family.words - 1] / MICRO if family.bounds_s else self._words[offset]

    def render(self) -> str:
        """Everything that was ever counted, as Prometheus text."""
        return "".join(self.pieces())

    def pieces(self) -> Iterator[str]:
        """The same before it is joined: whoever has more to add copies half a megabyte once and not twice."""
        words = self._words[: self._used].tolist()
        for family, series in self._plan:
            yield family.header
            size, cumulate = family.words, bool(family.bounds_s)
            for offset, values, zero in series:
                mine = words[offset : offset + size]
                template = self._templates.get(offset)  # what was shown once is shown for ever, also as zero
                if template is not None or zero or any(mine):
                    if template is None:
                        template = self._templates[offset] = _template(family, values)
                    yield template % (_cumulated(mine) if cumulate else mine[0])

    def _resolve(self, name: str, label: str) -> int:
        given = label.split("/")
        allowed = list(self._families[name].labels.values())
        given += [OTHER] * (len(allowed) - len(given))
        values = (value if value in known else OTHER for value, known in zip(given, allowed, strict=False))
        return self._offsets[name, "/".join(values)]


def _shows_zero(family: Family, values: tuple[str, ...]) -> bool:
    return not family.bounds_s and len(family.labels) < 2 and values != (OTHER,)


def _template(family: Family, values: tuple[str, ...]) -> str:
    """The lines of one combination, with places for its figures: one `%` costs a tenth of so many f-strings."""
    labels = dict(zip(family.labels, values, strict=True))
    if not family.bounds_s:
        return f"{PREFIX}{family.name}{label_text(labels)} %d\n"
    bounds = (*map(str, family.bounds_s), "+Inf")
    lines = [f"{PREFIX}{family.name}_bucket{label_text({**labels, 'le': bound})} %d\n" for bound in bounds]
    shown = label_text(labels)
    return "".join(lines) + f"{PREFIX}{family.name}_sum{shown} %.15g\n{PREFIX}{family.name}_count{shown} %d\n"


def _cumulated(words: list[int]) -> tuple[float, ...]:
    *buckets, sum_us = words
    running = tuple(itertools.accumulate(buckets))
    return (*running, sum_us / MICRO, running[-1])


def expose(family: Family, samples: Iterable[tuple[str, float]]) -> str:
    """A metric that is computed when it is asked for, as Prometheus text: (label_text, value) of each sample."""
    name = PREFIX + family.name
    return family.header + "".join([f"{name}{labels} {+value}\n" for labels, value in samples])  # +True is 1


def label_text(labels: Mapping[str, str]) -> str:
    """{tier="fast",class="high"}, or nothing."""
    shown = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{{{shown}}}" if shown else ""


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
