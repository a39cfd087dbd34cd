"""The whole of /metrics, read by Prometheus' own parser and held against the rules for names."""

from __future__ import annotations

import os
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from metamusesd.board import Board, SlotStatus, WorkerState
from metamusesd.config import load
from metamusesd.control import WorkerSpec
from metamusesd.metrics import FAMILIES, PREFIX, MetricsPage
from metamusesd.supervisor.coroner import Coroner
from metamusesd.supervisor.evidence import Evidence
from metamusesd.supervisor.gauges import COMPUTED
from metamusesd.supervisor.report import Reporter
from metamusesd.supervisor.slot import Slot
from metamusesd.supervisor.spec import Entries, Kind, child_specs

ALL = (*FAMILIES, *(each.family for each in COMPUTED))
UNITS = ("_seconds", "_bytes", "_ratio", "_perc", "_per_second", "_total", "_info", "_tokens")
COUNTED = ("num_", "workers", "leases_", "cache_entries", "vectors_entries", "kv_cache_cells")  # gauges of things
STATES = ("ready", "degraded", "phase", "child_status", "redis_up", "redis_trouble", "vectors_up", "vectors_tending",
          "dispatcher_stale", "dispatcher_draining")  # fmt: skip


def whole_family(workers: int = 2) -> Reporter:
    """A daemon in the middle of its work: every process, every counter and every histogram has something to say."""
    board = Board(workers)
    specs = [WorkerSpec(f"fast-{row}", "fast", "smollm2", (row,)) for row in range(workers)]
    slots = [
        Slot(spec, board.slots[spec.row] if spec.row >= 0 else None, SlotStatus.READY, pid=os.getpid())
        for spec in child_specs(specs, Entries(), redis=True, vectors=True)
    ]
    now_ns = time.monotonic_ns()
    for block in board.workers:
        block.write(
            state=WorkerState.DECODE, slots=8, slots_used=3, kv_cells=1000, kv_cells_used=250, decode_milli_rate=72_500,
            beat_ns=now_ns, step_ns=20_000_000, rss_bytes=1 << 28, generated_tokens=99,
            vram_total_bytes=1 << 33, vram_used_bytes=1 << 32,
        )  # fmt: skip
    board.dispatcher.write(beat_ns=now_ns, redis_ok=1, running=4, redis_since_ns=now_ns, queues_ns=now_ns)
    board.queues.write(**{"ingress.high": 2, "fast.low": 7, "fast.oldest_ms": 1500})
    board.vectors.write(beat_ns=now_ns, entries=12, asked=5, done=4, text_ns=5_000_000)
    page = MetricsPage(board.metric_words)
    for family in FAMILIES:
        for values in family.combinations():
            label = "/".join(values)
            if family.bounds_s:
                for seconds in (0.0004, 0.04, 4.0, 4000.0):
                    page.observe(family.name, label, seconds)
            elif not family.gauge:
                page.count(family.name, label, 3)
    for name in ("leases_held", "leases_running"):
        page.set(name, {"fast/high": 4, "mars/odd": 1})
    page.set("cache_entries", {"": 5})
    config = load(environ={}, overrides={"models.smollm2.engine": "echo", "daemon.state_dir": "/tmp"})
    return Reporter(config, board, slots, time.monotonic(), phase="running", cpu_s=lambda slot: 1.5)


@pytest.fixture(scope="module")
def text():
    return whole_family().metrics()


@pytest.fixture(scope="module")
def parsed(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_everything_is_there_with_its_kind_and_its_help(parsed):
    """Prometheus' parser finds every family that the tables have, none besides, each with type, help and samples."""
    assert set(parsed) == {PREFIX + family.name.removesuffix("_total") for family in ALL}
    for family in ALL:
        found = parsed[PREFIX + family.name.removesuffix("_total")]
        assert (found.type, found.documentation) == (family.kind, family.help)
        assert found.samples, family.name
        for sample in found.samples:
            assert set(sample.labels) - {"le"} == set(family.labels)


def test_no_series_comes_twice(parsed):
    """Name and labels are unique over the whole page, and a family has one block."""
    series = [
        (sample.name, tuple(sorted(sample.labels.items()))) for each in parsed.values() for sample in each.samples
    ]
    assert len(series) == len(set(series))


def test_a_family_has_one_header(text):
    """Two blocks of one family would be refused by a strict reader."""
    headers = [line.split(" ", 3)[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(headers) == len(set(headers)) == len(ALL)


def test_buckets_grow_and_end_in_the_count(parsed):
    """In every histogram: bounds rise, counts never fall, +Inf is the count, and the sum is in seconds."""
    histograms = [family for family in parsed.values() if family.type == "histogram"]
    assert len(histograms) == sum(bool(family.bounds_s) for family in ALL)
    for family in histograms:
        by_labels: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
        rest = {}
        for sample in family.samples:
            labels = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
            if sample.name.endswith("_bucket"):
                by_labels.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
            else:
                rest[sample.name, labels] = sample.value
        for labels, buckets in by_labels.items():
            assert buckets == sorted(buckets)
            assert [count for _, count in buckets] == sorted(count for _, count in buckets)
            assert buckets[-1] == (float("inf"), 4) == (float("inf"), rest[family.name + "_count", labels])
            assert rest[family.name + "_sum", labels] == pytest.approx(4004.0404)


def test_names_say_what_they_count():
    """A counter ends in _total and nothing else does; a histogram in _seconds; a gauge has its unit, counts things that
    it is named for, or is a state of 0 or 1. No name, label or help breaks the format."""
    for family in ALL:
        name = family.name
        assert name.replace("_", "").isalnum() and name.islower()
        assert family.help.endswith(".") and "\n" not in family.help and "\\" not in family.help
        assert (family.kind == "counter") == name.endswith("_total"), name
        assert family.kind != "histogram" or name.endswith("_seconds")
        if family.kind == "gauge":
            assert name.endswith(UNITS) or name.startswith(COUNTED) or name in STATES, name
        assert not set(family.labels) & {"le", "quantile", "job", "instance"}, name  # Prometheus' own
        if name in STATES:
            assert family.help.startswith("1: "), name


def test_figures_are_in_base_units(parsed):
    """Seconds, bytes and shares, not milliseconds, cells and permille."""

    def value(name: str, **labels: str) -> float:
        return next(s.value for s in parsed[PREFIX + name].samples if labels.items() <= s.labels.items())

    assert value("queue_oldest_seconds", queue="fast") == 1.5
    assert value("kv_cache_usage_perc", worker="fast-0") == 0.25
    assert value("decode_tokens_per_second", worker="fast-1") == 72.5
    assert value("worker_step_seconds", worker="fast-0") == pytest.approx(0.02)
    assert value("process_resident_memory_bytes", process="fast-0") == 1 << 28
    assert value("process_resident_memory_bytes", process="supervisor") > 1 << 20
    assert value("process_cpu_seconds", process="fast-0") == 1.5
    assert value("num_requests_waiting", queue="fast", **{"class": "low"}) == 7
    assert value("leases_held", tier="fast", **{"class": "high"}) == 4
    assert value("leases_held", tier="other", **{"class": "other"}) == 1
    assert value("workers_ready", tier="fast") == 2
    assert value("class_max_wait_seconds", **{"class": "high"}) == 30
    assert value("ready") == 1
    assert value("state_disk_bytes") > value("state_disk_free_bytes") > 0


def test_what_nobody_knows_is_left_out():
    """Before a dispatcher, a heartbeat and a vectors process there is no age, no depth, no entry; and it is stale."""
    board = Board(1)
    slots = [Slot(spec) for spec in child_specs([], Entries(), redis=False, vectors=False)]
    reporter = Reporter(load(environ={}), board, slots, time.monotonic())
    found = {family.name: family.samples for family in text_string_to_metric_families(reporter.metrics())}
    for name in ("dispatcher_beat_age_seconds", "queues_age_seconds", "vectors_entries", "worker_beat_age_seconds",
                 "worker_vram_bytes"):  # fmt: skip
        assert found[PREFIX + name] == []
    assert found[PREFIX + "dispatcher_stale"][0].value == 1
    assert found[PREFIX + "redis_up"][0].value == 0


def test_two_workers_of_one_name_are_one_series():
    """While a reload replaces a worker, the ready one speaks for both, whichever comes first."""
    reporter = whole_family(2)
    older, newer = (slot for slot in reporter.slots if slot.spec.kind is Kind.WORKER)
    newer.spec = older.spec
    for first, second in ((SlotStatus.READY, SlotStatus.STARTING), (SlotStatus.STOPPING, SlotStatus.READY)):
        older.status, newer.status = first, second
        families = text_string_to_metric_families(reporter.metrics())
        [status] = [
            sample.labels["status"]
            for family in families
            for sample in family.samples
            if family.name == PREFIX + "child_status" and sample.labels["child"] == "fast-0"
        ]
        assert status == "ready"


def test_workers_that_sleep_or_are_drained_have_their_own_count():
    """Asleep is not ready and no fault; drained is ready, and gets nothing."""
    reporter = whole_family(3)
    first, second, _ = (slot for slot in reporter.slots if slot.spec.kind is Kind.WORKER)
    first.status, second.held = SlotStatus.ASLEEP, True
    text = reporter.metrics()
    for name, count in (("workers", 3), ("workers_ready", 2), ("workers_asleep", 1), ("workers_drained", 1)):
        assert f'metamusesd_{name}{{tier="fast"}} {count}\n' in text


def test_ends_are_counted_by_child_and_reason(tmp_path):
    """Every reason is there from the start, so that the first death is an increase."""
    reporter = whole_family()
    coroner = Coroner(reporter.board, Evidence(tmp_path))
    reporter.exits = coroner.exits
    slot = next(slot for slot in reporter.slots if slot.spec.kind is Kind.DISPATCHER)
    line = 'metamusesd_child_exits_total{child="dispatcher",reason="%s"} %d\n'
    ends = {"hung": 9, "killed": 9, "signal": 11, "done": 0, "refused": 78 << 8, "error": 71 << 8, "replaced": 9}
    assert all(line % (reason, 0) in reporter.metrics() for reason in ends)
    for reason, wait_status in ends.items():
        slot.hung, slot.recycling = "no step" if reason == "hung" else "", reason == "replaced"
        coroner.examine(slot, wait_status)
    assert all(line % (reason, 1) in reporter.metrics() for reason in ends)
