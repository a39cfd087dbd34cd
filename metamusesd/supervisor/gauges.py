"""Supervisor · the computed half of /metrics: looked up on the board, in the slots and at the kernel, when asked for.

Nobody is woken for it: no message goes to a child, and nothing waits. A figure that nobody knows is left out. The other
half is the dispatcher's page, see metrics.py; docs/metrics.md lists both.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from metamusesd import REDIS_PROTOCOL, __version__
from metamusesd.board import QUEUES, Board, RedisTrouble, SlotStatus
from metamusesd.config import Config
from metamusesd.metrics import CLASSES, OTHER, Family, expose, label_text
from metamusesd.supervisor import semantic
from metamusesd.supervisor.coroner import EXIT_REASONS
from metamusesd.supervisor.proc import kernel_sight, resident_bytes
from metamusesd.supervisor.slot import Slot
from metamusesd.supervisor.spec import Kind

NS = 1_000_000_000
STALE_S = 5.0
PHASES = ("starting", "running", "draining", "stopping", "closing")
RELOADS = ("done", "rolled_back", "refused")
SUPERVISOR = "supervisor"
Sample = tuple[str, float]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the reporter knows. `exits`: how often each child ended, by reason; `reloads`: by outcome; `cpu_s`: of a
    watched child."""

    config: Config
    slots: Sequence[Slot]
    started_s: float
    phase: str
    ready: bool
    degraded: bool
    exits: Mapping[tuple[str, str], int]
    reloads: Mapping[str, int]
    cpu_s: Callable[[Slot], float]


class Sight:
    """One look at everything, so that all figures of a scrape are of one moment."""

    def __init__(self, board: Board, facts: Facts) -> None:
        self.facts, self.now_ns = facts, time.monotonic_ns()
        self.children = _one_a_name(facts.slots)
        self.dispatcher, self.queues = board.dispatcher.read(), board.queues.read()
        vectors = next((slot for slot in facts.slots if slot.spec.kind is Kind.VECTORS), None)
        self.vectors = (board.vectors.read() or {}) if vectors is not None else None
        self.workers = [
            (_labels(worker=slot.name, tier=slot.spec.worker.tier, model=slot.spec.worker.model), slot, row)
            for slot in self.children.values()
            if slot.spec.worker is not None and (row := board.workers[slot.spec.row].read()) is not None
        ]

    def age_s(self, at_ns: int | None) -> list[Sample]:
        """Since this moment; nothing when it never was."""
        return [("", max(0.0, (self.now_ns - at_ns) / NS))] if at_ns else []


@dataclass(frozen=True, slots=True)
class Computed:
    """A metric, and how it is looked up."""

    family: Family
    look: Callable[[Sight], Iterable[Sample]]


def pieces(board: Board, facts: Facts) -> list[str]:
    """Prometheus text, not joined yet."""
    sight = Sight(board, facts)
    return [expose(each.family, each.look(sight)) for each in COMPUTED]


@lru_cache(maxsize=4096)
def _labels(**labels: str) -> str:
    return label_text(labels)


def _one_a_name(slots: Sequence[Slot]) -> dict[str, Slot]:
    """While a reload replaces a worker two have its name: the ready one counts, or a series would come twice."""
    found: dict[str, Slot] = {}
    for slot in slots:
        if slot.name not in found or found[slot.name].status is not SlotStatus.READY:
            found[slot.name] = slot
    return found


def _gauge(name: str, help: str, look: Callable[[Sight], Iterable[Sample]], *labels: str) -> Computed:
    return Computed(Family(name, help, dict.fromkeys(labels, ()), gauge=True), look)


def _counter(name: str, help: str, look: Callable[[Sight], Iterable[Sample]], *labels: str) -> Computed:
    return Computed(Family(name, help, dict.fromkeys(labels, ())), look)


# of the daemon


def _build(_sight: Sight) -> list[Sample]:
    return [(_labels(version=__version__, python=platform.python_version(), protocol=REDIS_PROTOCOL), 1)]


def _phase(sight: Sight) -> list[Sample]:
    return [(_labels(phase=phase), phase == sight.facts.phase) for phase in PHASES]


def _reloads(sight: Sight) -> list[Sample]:
    return [(_labels(outcome=outcome), sight.facts.reloads.get(outcome, 0)) for outcome in RELOADS]


def _disk(free: bool) -> Callable[[Sight], list[Sample]]:
    def look(sight: Sight) -> list[Sample]:
        try:
            disk = os.statvfs(sight.facts.config.state_dir)
        except OSError:
            return []
        return [("", disk.f_frsize * (disk.f_bavail if free else disk.f_blocks))]

    return look


# of the processes


def _status(sight: Sight) -> list[Sample]:
    return [(_labels(child=name, status=slot.status.name.lower()), 1) for name, slot in sight.children.items()]


def _exits(sight: Sight) -> list[Sample]:
    exits = sight.facts.exits
    return [
        (_labels(child=name, reason=reason), exits.get((name, reason), 0))
        for name in sight.children
        for reason in EXIT_REASONS
    ]


def _resident(sight: Sight) -> list[Sample]:
    """Workers say it themselves; the others are looked up."""
    found = [(_labels(process=SUPERVISOR), float(resident_bytes(os.getpid())))]
    rows = {slot.name: row["rss_bytes"] for _, slot, row in sight.workers}
    for name, slot in sight.children.items():
        if slot.pid:
            found.append((_labels(process=name), float(rows.get(name) or resident_bytes(slot.pid))))
    return found


def _cpu(sight: Sight) -> list[Sample]:
    """Of the watched as the watch saw it last; Redis has no watch."""
    found = [(_labels(process=SUPERVISOR), time.process_time())]
    for name, slot in sight.children.items():
        if slot.pid:
            used_s = kernel_sight(slot.pid).cpu_s if slot.spec.kind is Kind.REDIS else sight.facts.cpu_s(slot)
            found.append((_labels(process=name), used_s))
    return found


# of the workers


def _by_worker(field: str, scale: float = 1.0) -> Callable[[Sight], list[Sample]]:
    return lambda sight: [(labels, row[field] * scale) for labels, _, row in sight.workers]


def _kv_usage(sight: Sight) -> list[Sample]:
    return [
        (labels, row["kv_cells_used"] / row["kv_cells"]) for labels, _, row in sight.workers if row["kv_cells"]
    ]  # fmt: skip


def _on_gpu(field: str) -> Callable[[Sight], list[Sample]]:
    return lambda sight: [(labels, row[field]) for labels, _, row in sight.workers if row["vram_total_bytes"]]


def _worker_beat(sight: Sight) -> list[Sample]:
    return [
        (labels, max(0.0, (sight.now_ns - row["beat_ns"]) / NS)) for labels, _, row in sight.workers if row["beat_ns"]
    ]


def _configured_slots(sight: Sight) -> list[Sample]:
    return [(labels, slot.spec.worker.slots) for labels, slot, _ in sight.workers if slot.spec.worker is not None]


def _by_tier(is_counted: Callable[[Slot], bool]) -> Callable[[Sight], list[Sample]]:
    def look(sight: Sight) -> list[Sample]:
        counts: dict[str, int] = {}
        for slot in sight.children.values():
            if slot.spec.worker is not None:
                counts[slot.spec.worker.tier] = counts.get(slot.spec.worker.tier, 0) + is_counted(slot)
        return [(_labels(tier=tier), count) for tier, count in counts.items()]

    return look


# of the queue, the dispatcher, Redis


def _waiting(sight: Sight) -> list[Sample]:
    queues = sight.queues or {}
    return [
        (_labels(queue=queue, **{"class": name}), queues[f"{queue}.{name}"])
        for queue in QUEUES
        for name in CLASSES
        if queues
    ]


def _oldest(sight: Sight) -> list[Sample]:
    queues = sight.queues or {}
    return [(_labels(queue=queue), queues[f"{queue}.oldest_ms"] / 1000) for queue in QUEUES if queues]


def _max_wait(sight: Sight) -> list[Sample]:
    """Of the classes that have one."""
    classes = sight.facts.config.classes
    return [(_labels(**{"class": name}), each.max_wait_s) for name, each in classes.items() if each.max_wait_s]


def _of_dispatcher(field: str, scale: float = 1.0) -> Callable[[Sight], list[Sample]]:
    return lambda sight: [("", sight.dispatcher[field] * scale)] if sight.dispatcher else []


def _dispatcher_age(field: str) -> Callable[[Sight], list[Sample]]:
    return lambda sight: sight.age_s((sight.dispatcher or {}).get(field))


def _stale(sight: Sight) -> list[Sample]:
    age_s = sight.age_s((sight.dispatcher or {}).get("beat_ns"))
    return [("", not age_s or age_s[0][1] > STALE_S)]


def _trouble(sight: Sight) -> list[Sample]:
    now = (sight.dispatcher or {}).get("redis_trouble", 0)
    known = [each for each in RedisTrouble if each is not RedisTrouble.NONE]
    shown = [(_labels(trouble=each.name.lower()), now == each) for each in known]
    return shown + ([(_labels(trouble=OTHER), 1)] if now not in RedisTrouble._value2member_map_ else [])


# of the semantic cache


def _vectors_up(sight: Sight) -> list[Sample]:
    """Nothing where nobody wants it."""
    config = sight.facts.config
    slot = next((slot for slot in sight.children.values() if slot.spec.kind is Kind.VECTORS), None)
    return [("", slot is not None and not semantic.limitation(slot, ""))] if semantic.is_wanted(config) else []


def _of_vectors(field: str, scale: float = 1.0) -> Callable[[Sight], list[Sample]]:
    return lambda sight: [("", sight.vectors.get(field, 0) * scale)] if sight.vectors is not None else []


COMPUTED = (
    _gauge("build_info", "1, and what runs.", _build, "version", "python", "protocol"),
    _gauge("uptime_seconds", "Since the daemon's start.", lambda s: [("", s.now_ns / NS - s.facts.started_s)]),
    _gauge("ready", "1: /readyz says 200.", lambda s: [("", s.facts.ready)]),
    _gauge("degraded", "1: work is done, and something is off; /status says what.",
           lambda s: [("", s.facts.degraded)]),
    _gauge("phase", "1: the daemon is in this phase.", _phase, "phase"),
    _counter("reloads_total", "Reloads, by outcome: done, rolled back after a failed start or canary, or refused "
             "before anything was touched.", _reloads, "outcome"),
    _gauge("state_disk_bytes", "Size of the file system that has the state directory.", _disk(free=False)),
    _gauge("state_disk_free_bytes", "Room on it for us.", _disk(free=True)),
    _gauge("child_status", "1: what each process is doing.", _status, "child", "status"),
    _counter("restarts_total", "Restarts of our processes.",
             lambda s: [(_labels(child=name), slot.restarts) for name, slot in s.children.items()], "child"),
    _counter("child_exits_total", "Ends of our processes, by reason.", _exits, "child", "reason"),
    _gauge("process_resident_memory_bytes", "Resident memory of each process.", _resident, "process"),
    _counter("process_cpu_seconds_total", "Processor time that each process has used.", _cpu, "process"),
    _gauge("workers", "Workers that the configuration asks for.", _by_tier(lambda _slot: True), "tier"),
    _gauge("workers_ready", "Workers that have their model loaded.",
           _by_tier(lambda slot: slot.status is SlotStatus.READY), "tier"),
    _gauge("workers_asleep", "Workers that were unloaded because nobody used them, and come back when wanted.",
           _by_tier(lambda slot: slot.status is SlotStatus.ASLEEP), "tier"),
    _gauge("workers_drained", "Workers that an operator has drained: they get no jobs.",
           _by_tier(lambda slot: slot.held), "tier"),
    *(
        _gauge(name, help, look, "worker", "tier", "model")
        for name, help, look in (
            ("num_requests_running", "Sequences that generate now.", _by_worker("slots_used")),
            ("num_requests_preempted", "Sequences that yield to higher classes.", _by_worker("preempted")),
            ("num_slots", "Sequences that can generate at a time.", _configured_slots),
            ("kv_cache_usage_perc", "Part of the KV cells in use, 0 to 1.", _kv_usage),
            ("kv_cache_cells", "Tokens that its KV cache holds.", _by_worker("kv_cells")),
            ("queued_prompt_tokens", "Prompt tokens that it has not computed yet.", _by_worker("queued_prompt_tokens")),
            ("prefill_tokens_per_second", "Measured rate of prompts.", _by_worker("prefill_milli_rate", 1e-3)),
            ("decode_tokens_per_second", "Measured rate of generation.", _by_worker("decode_milli_rate", 1e-3)),
            ("worker_step_seconds", "How long its last step took.", _by_worker("step_ns", 1e-9)),
            ("worker_beat_age_seconds", "Since its heartbeat or step.", _worker_beat),
            ("worker_loaded_ratio", "Part of its model that is loaded, 0 to 1.", _by_worker("loaded_permille", 1e-3)),
            ("worker_vram_bytes", "Memory of its GPUs.", _on_gpu("vram_total_bytes")),
            ("worker_vram_used_bytes", "What is used of it, by anybody.", _on_gpu("vram_used_bytes")),
            ("worker_private_bytes", "Resident memory that it shares with nobody; 0: not measured yet.",
             lambda s: [(labels, slot.private_bytes) for labels, slot, _ in s.workers]),
        )
    ),
    *(
        _counter(name, help, _by_worker(field), "worker", "tier", "model")
        for name, help, field in (
            ("worker_generation_tokens_total", "Tokens generated by the present process.", "generated_tokens"),
            ("worker_prompt_tokens_total", "Prompt tokens computed by the present process.", "prompt_tokens"),
            ("worker_steps_total", "Steps of the present process.", "steps"),
            ("worker_jobs_total", "Jobs that ended in the present process.", "jobs"),
        )
    ),
    _gauge("num_requests_waiting", "Jobs that wait, on all hosts. A job stands in the queue of each tier that may "
           "serve it.", _waiting, "queue", "class"),
    _gauge("queue_oldest_seconds", "How long the job has waited that is at the head of the queue the longest.", _oldest,
           "queue"),
    _gauge("queues_age_seconds", "Since the queues were counted.", _dispatcher_age("queues_ns")),
    _gauge("class_max_wait_seconds", "After so long a job of this class is aged, from the configuration.", _max_wait,
           "class"),
    _gauge("num_requests_inflight", "Jobs the dispatcher holds.", _of_dispatcher("running")),
    _gauge("dispatcher_stale", "1: the dispatcher's figures are old.", _stale),
    _gauge("dispatcher_beat_age_seconds", "Since its heartbeat.", _dispatcher_age("beat_ns")),
    _gauge("dispatcher_draining", "1: it claims no more jobs.", _of_dispatcher("draining")),
    _gauge("redis_up", "1: the dispatcher reaches Redis.", lambda s: [("", (s.dispatcher or {}).get("redis_ok", 0))]),
    _gauge("redis_state_seconds", "Since Redis went or came back.", _dispatcher_age("redis_since_ns")),
    _gauge("redis_trouble", "1: what Redis cannot do, by name.", _trouble, "trouble"),
    _gauge("vectors_up", "1: the semantic cache serves; nothing: it is switched off.", _vectors_up),
    _gauge("vectors_entries", "Answers in the semantic cache.", _of_vectors("entries")),
    _gauge("vectors_tending", "1: its store does its maintenance.",
           lambda s: [] if s.vectors is None else [("", bool(s.vectors.get("tending_ns")))]),
    _gauge("vectors_embedding_seconds", "How long embedding a text took of late.", _of_vectors("text_ns", 1e-9)),
    _counter("vectors_asked_total", "Questions to the vectors process.", _of_vectors("asked")),
    _counter("vectors_answered_total", "Questions that it has answered.", _of_vectors("done")),
    _counter("vectors_failures_total", "Questions that it could not answer.", _of_vectors("failures")),
)  # fmt: skip
