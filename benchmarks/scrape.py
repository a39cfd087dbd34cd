"""Scrape benchmark · bench process · what one look at /metrics costs the supervisor, and that it wakes nobody.

    usual     two workers of one tier, all classes, the caches: what a daemon of one model has to say
    full      every combination of every metric, other included, and 64 workers: it can never be more
    daemon    a real daemon over its UNIX socket, idle; and what scraping adds to its children's wake-ups

`usual` and `full` render the page in this process. Yardstick: prometheus_client's `generate_latest` of a registry with
the same families, labels and number of series.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import scrape_daemon
from benchmarks.report import Report, Row, absolute, compare
from metamusesd.board import MAX_ROWS, Board, SlotStatus
from metamusesd.config import load
from metamusesd.control import WorkerSpec
from metamusesd.metrics import FAMILIES, OTHER, Family, MetricsPage
from metamusesd.supervisor.report import Reporter
from metamusesd.supervisor.slot import Slot
from metamusesd.supervisor.spec import Entries, child_specs

CASES = ("usual", "full", "daemon")
SCRAPES, QUICK_SCRAPES = 300, 30
YARDSTICK = "prometheus_client"
BAR = "< 2"
USUAL = {"tier": ("fast",), "requested_tier": ("fast",), "queue": ("ingress", "fast")}  # the others: all their values


def run(options: argparse.Namespace) -> Report:
    """Each case, rounds alternating."""
    report = Report(benchmark="scrape", command=options.command)
    rounds, scrapes = options.rounds or (1 if options.quick else 3), QUICK_SCRAPES if options.quick else SCRAPES
    for case in options.case or CASES:
        if case == "daemon":
            report.rows += scrape_daemon.rows(scrapes, rounds)
        else:
            report.rows += _rendered(case, scrapes, rounds)
    report.notes = [
        "usual, full: rendering alone, in this process. daemon: connect, ask, read to the end, from another process.",
        "wake-ups: voluntary context switches of all children, per second; with ten scrapes a second, and with none.",
    ]
    return report


def _rendered(case: str, scrapes: int, rounds: int) -> list[Row]:
    reporter = _daemon(MAX_ROWS if case == "full" else 2, full=case == "full")
    text = reporter.metrics()
    registry = _registry(text)
    gc.collect()
    gc.freeze()  # neither side pays for the garbage collector's walk over the other side's objects
    found = [(_times_ms(reporter.metrics, scrapes), _times_ms(lambda: generate_latest(registry), scrapes // 5))
             for _ in range(rounds)]  # fmt: skip
    p50 = [(_quantile(ours, 0.5), _quantile(theirs, 0.5)) for ours, theirs in found]
    p99 = [(_quantile(ours, 0.99), _quantile(theirs, 0.99)) for ours, theirs in found]
    series = sum(not line.startswith("#") for line in text.splitlines())
    return [
        absolute("samples", case, "lines", [series]),
        compare("render p50", case, "ms", p50, against=YARDSTICK),
        compare("render p99", case, "ms", p99, against=YARDSTICK),
        absolute("render p50", case, "ms", [mine for mine, _ in p50], bar=BAR if case == "usual" else None),
    ]


def _daemon(workers: int, *, full: bool) -> Reporter:
    """What a supervisor holds, without its children: all their process ids are ours."""
    board, source = Board(workers), random.Random(1)
    specs = [WorkerSpec(f"fast-{row}", "fast", "smollm2", (row,)) for row in range(workers)]
    slots = [
        Slot(spec, board.slots[spec.row] if spec.row >= 0 else None, SlotStatus.READY, pid=os.getpid())
        for spec in child_specs(specs, Entries(), redis=True, vectors=True)
    ]
    for block in board.workers:
        block.write(slots_used=3, kv_cells=4096, kv_cells_used=1234, beat_ns=time.monotonic_ns(), rss_bytes=1 << 28)
    board.dispatcher.write(beat_ns=time.monotonic_ns(), redis_ok=1, redis_since_ns=1, queues_ns=1)
    page = MetricsPage(board.metric_words)
    for family in FAMILIES:
        for values in family.combinations():
            if not full and not _is_usual(family, values):
                continue
            if family.bounds_s:
                for _ in range(50):
                    page.observe(family.name, "/".join(values), source.expovariate(2))
            elif not family.gauge:
                page.count(family.name, "/".join(values), source.randrange(1, 10**7))
    config = load(environ={}, overrides={"models.smollm2.engine": "echo"})
    return Reporter(config, board, slots, time.monotonic(), phase="running")


def _is_usual(family: Family, values: Sequence[str]) -> bool:
    return all(
        value != OTHER and value in USUAL.get(label, (value,))
        for label, value in zip(family.labels, values, strict=True)
    )


def _registry(text: str) -> CollectorRegistry:
    """The same page, held by the yardstick."""
    registry = CollectorRegistry()
    for family in filter(lambda each: each.samples, text_string_to_metric_families(text)):
        names = sorted({label for sample in family.samples for label in sample.labels if label != "le"})
        if family.type == "histogram":
            bounds = sorted({float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels})
            histogram = Histogram(family.name, family.documentation, names, buckets=bounds, registry=registry)
            for sample in family.samples:
                if sample.name.endswith("_count"):
                    (histogram.labels(**sample.labels) if names else histogram).observe(0.04)
            continue
        kind = Counter if family.type == "counter" else Gauge
        metric = kind(family.name, family.documentation, names, registry=registry)
        for sample in family.samples:
            (metric.labels(**sample.labels) if names else metric).inc(sample.value)
    return registry


def _times_ms(render: Callable[[], object], count: int) -> list[float]:
    render()
    found = []
    for _ in range(count):
        started_ns = time.perf_counter_ns()
        render()
        found.append((time.perf_counter_ns() - started_ns) / 1e6)
    return sorted(found)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
