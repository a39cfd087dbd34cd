"""Supervisor · what health says: /status, /readyz and /metrics, from the board and the slots.

Figures of the dispatcher carry their age; when its heartbeat is older than STALE_S they are marked stale, never
hidden.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metamusesd import __version__
from metamusesd.board import QUEUES, Board, RedisTrouble, SlotStatus, WorkerState, rates
from metamusesd.config import EMBEDDED, Config
from metamusesd.metrics import MetricsPage
from metamusesd.supervisor import gauges, semantic
from metamusesd.supervisor.gauges import NS, STALE_S
from metamusesd.supervisor.health import Answer
from metamusesd.supervisor.slot import Slot, exit_text
from metamusesd.supervisor.spec import Kind

CLASSES = ("low", "normal", "high", "critical")


@dataclass(slots=True)
class Reporter:
    """Looks at the family and tells. Changes nothing."""

    config: Config
    board: Board
    slots: Sequence[Slot]
    started_s: float
    phase: str = "starting"  # of the daemon: starting, running, draining, stopping
    placement: tuple[str, ...] = ()
    missing: str = ""  # why there is no semantic cache
    waits: Mapping[str, str] = field(default_factory=dict)  # tiers that sleep, are wanted, and cannot come
    misplaced: Mapping[str, str] = field(default_factory=dict)  # workers that a changed cpuset moved: seats.py
    patience_s: Callable[[Slot], float] = lambda _slot: 0.0
    cpu_s: Callable[[Slot], float] = lambda _slot: 0.0
    exits: Mapping[tuple[str, str], int] = field(default_factory=dict)  # the coroner counts them
    reloads: Mapping[str, int] = field(default_factory=dict)  # orders.py counts them, by outcome
    _page: MetricsPage | None = None

    def answer(self, path: str) -> Answer | None:
        """For the health server. None: no such path."""
        if path == "/livez":
            return Answer(200, '{"alive": true}\n')
        if path == "/readyz":
            reasons = self.reasons()
            return Answer(503 if reasons else 200, _json({"ready": not reasons, "reasons": reasons}))
        if path == "/status":
            return Answer(200, _json(self.status()))
        if path == "/metrics":
            return Answer(200, self.metrics(), "text/plain; version=0.0.4; charset=utf-8")
        return None

    def reasons(self) -> list[str]:
        """Why work cannot be taken now; empty when it can."""
        found = [] if self.phase == "running" else [f"the daemon is {self.phase}"]
        for slot in self._of(Kind.REDIS):
            if slot.status is not SlotStatus.READY:
                said = (slot.last_error or {}).get("message")
                found.append(f"redis is {slot.status.name.lower()}" + (f": {said}" if said else ""))
        for slot in self._of(Kind.DISPATCHER):
            found += self._dispatcher_reasons(slot)
        if not any(slot.status in (SlotStatus.READY, SlotStatus.ASLEEP) for slot in self._of(Kind.WORKER)):
            found.append("no worker is ready")
        elif all(slot.held for slot in self._of(Kind.WORKER) if slot.status in (SlotStatus.READY, SlotStatus.ASLEEP)):
            found.append("every worker is drained: `metamusesd undrain` gives them jobs again")
        return found

    def degraded(self) -> list[str]:
        """What is off, though work is taken and done; empty when nothing is."""
        limitation = semantic.limitation(next(iter(self._of(Kind.VECTORS)), None), self.missing)
        return [*([limitation] if limitation else []), *self.waits.values(), *self.misplaced.values()]

    def status(self) -> dict[str, Any]:
        """The whole picture, for `metamusesd status` and `top`."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self.started_s, 1),
            "state": self._state(),
            "reasons": self.reasons(),
            "degraded": self.degraded(),
            "config": self.config.source,
            "redis": self._redis(),
            "dispatcher": self._dispatcher(),
            "vectors": self._vectors(),
            "workers": [self._worker(slot) for slot in self._of(Kind.WORKER)],
            "queues": self._queues(),
            "placement": list(self.placement),
        }

    def summary(self) -> str:
        """One line for `systemctl status`."""
        workers, queues = self._of(Kind.WORKER), self._queues()
        ready = sum(slot.status is SlotStatus.READY for slot in workers)
        queued = sum(sum(queue[name] for name in CLASSES) for queue in queues["by_queue"].values())
        return f"{self._state()}: {ready}/{len(workers)} workers ready, {queued} queued, {self._running()} running"

    def metrics(self) -> str:
        """Prometheus text: the dispatcher's page, then what is computed now."""
        if self._page is None:
            self._page = MetricsPage(self.board.metric_words)
        facts = gauges.Facts(
            self.config, self.slots, self.started_s, self.phase, ready=not self.reasons(),
            degraded=bool(self.degraded()), exits=self.exits, reloads=self.reloads, cpu_s=self.cpu_s,
        )  # fmt: skip
        return "".join([*self._page.pieces(), *gauges.pieces(self.board, facts)])

    def beat_age_s(self) -> float | None:
        """How old the dispatcher's heartbeat is; None before its first."""
        beat_ns = self.board.dispatcher.get("beat_ns")
        return max(0.0, (time.monotonic_ns() - beat_ns) / NS) if beat_ns else None

    def _of(self, kind: Kind) -> list[Slot]:
        return [slot for slot in self.slots if slot.spec.kind is kind]

    def _state(self) -> str:
        return ("degraded" if self.reasons() else "ready") if self.phase == "running" else self.phase

    def _dispatcher_reasons(self, slot: Slot) -> list[str]:
        if slot.status is not SlotStatus.READY:
            return [f"the dispatcher is {slot.status.name.lower()}"]
        age_s = self.beat_age_s()
        if age_s is None or age_s > STALE_S:
            return [
                "the dispatcher has no heartbeat"
                if age_s is None
                else f"the dispatcher's heartbeat is {age_s:.0f} s old"
            ]
        trouble = self._redis_trouble()
        if trouble is RedisTrouble.NONE and not self.board.dispatcher.get("redis_ok"):
            trouble = RedisTrouble.UNREACHABLE
        return [TROUBLES[trouble]] if trouble else []

    def _redis_trouble(self) -> RedisTrouble:
        code = self.board.dispatcher.get("redis_trouble")
        return RedisTrouble(code) if code in RedisTrouble._value2member_map_ else RedisTrouble.UNREACHABLE

    def _redis(self) -> dict[str, Any]:
        embedded = self.config.redis.url == EMBEDDED
        shown: dict[str, Any] = {
            "embedded": embedded,
            "url": _masked(self.config.redis_url),
            "prefix": self.config.redis.prefix,
        }
        for slot in self._of(Kind.REDIS):
            shown |= _life(slot)
        return shown

    def _running(self) -> int:
        return int((self.board.dispatcher.read() or {}).get("running", 0))

    def _dispatcher(self) -> dict[str, Any]:
        fields, age_s = self.board.dispatcher.read() or {}, self.beat_age_s()
        life = next((_life(slot) for slot in self._of(Kind.DISPATCHER)), {})
        return life | {
            "beat_age_s": None if age_s is None else round(age_s, 3),
            "stale": not fields or age_s is None or age_s > STALE_S,
            "running": fields.get("running", 0),
            "workers": fields.get("workers", 0),
            "redis_ok": bool(fields.get("redis_ok", 0)),
            "redis_trouble": self._redis_trouble().name.lower(),
            "faults": fields.get("faults", 0),
            "draining": bool(fields.get("draining", 0)),
            "claims": fields.get("claims", 0),
            "settled": fields.get("settled", 0),
            "loop_lag_ms": round(fields.get("loop_lag_ns", 0) / 1e6, 3),
        }

    def _vectors(self) -> dict[str, Any] | None:
        """None: there is none."""
        for slot in self._of(Kind.VECTORS):
            fields = self.board.vectors.read() or {}
            age_s = (time.monotonic_ns() - fields["beat_ns"]) / NS if fields.get("beat_ns") else None
            return _life(slot) | {
                "beat_age_s": None if age_s is None else round(max(0.0, age_s), 3),
                "stale": age_s is None or age_s > STALE_S,
                "tending": bool(fields.get("tending_ns", 0)),
                "text_ms": round(fields.get("text_ns", 0) / 1e6, 2),
                "patience_s": round(self.patience_s(slot), 1),
            } | {name: fields.get(name, 0) for name in VECTORS_SHOWN}  # fmt: skip
        return None

    def _worker(self, slot: Slot) -> dict[str, Any]:
        spec = slot.spec.worker
        assert spec is not None
        fields = self.board.workers[slot.spec.row].read()
        placed = {
            "tier": spec.tier,
            "model": spec.model,
            "cores": list(spec.cores),
            "gpus": list(spec.gpus),
            "slots": spec.slots,
        }
        watched = {
            "stale": fields is None,
            "recycling": slot.recycling,
            "drained": slot.held,
            "private_bytes": slot.private_bytes,
            "patience_s": round(self.patience_s(slot), 1),
        }
        return _life(slot) | placed | {"reserve_slots": spec.reserve_slots} | watched | _load(fields or {})

    def _queues(self) -> dict[str, Any]:
        fields, at_ns = self.board.queues.read(), self.board.dispatcher.get("queues_ns")
        age_s = max(0.0, (time.monotonic_ns() - at_ns) / NS) if at_ns else None
        depths = fields or {}
        parts = (*CLASSES, "oldest_ms")
        return {
            "age_s": None if age_s is None else round(age_s, 3),
            "stale": fields is None or age_s is None or age_s > STALE_S,
            "by_queue": {queue: {part: depths.get(f"{queue}.{part}", 0) for part in parts} for queue in QUEUES},
        }


TROUBLES = {
    RedisTrouble.UNREACHABLE: "the dispatcher has no connection to redis",
    RedisTrouble.LOADING: "redis reads its file",
    RedisTrouble.MEMORY: "redis is out of memory (maxmemory)",
    RedisTrouble.READ_ONLY: "redis is read-only",
    RedisTrouble.DISK: "redis cannot write its disk",
    RedisTrouble.BUSY: "redis is busy with a script or a fail-over",
    RedisTrouble.DENIED: "redis denies the daemon's user what it needs",
    RedisTrouble.POLICY: "redis would lose jobs: its maxmemory-policy or its version is refused",
    RedisTrouble.FAULT: "a queue script fails on a key of a wrong type",
}
VECTORS_SHOWN = ("asked", "done", "hits", "misses", "failures", "entries", "rss_bytes")


def _life(slot: Slot) -> dict[str, Any]:
    """What every child has."""
    return {
        "name": slot.name,
        "pid": slot.pid or None,
        "status": slot.status.name.lower(),
        "since_s": round(time.monotonic() - slot.since_s, 1),
        "generation": slot.generation,
        "restarts": slot.restarts,
        "last_exit": None if slot.last_exit is None else exit_text(slot.last_exit),
        "last_error": slot.last_error,
    }


def _load(fields: dict[str, int]) -> dict[str, Any]:
    """A worker's own row, in units for people."""
    known = (
        dict.fromkeys(("slots_used", "preempted", "queued_prompt_tokens", "kv_cells", "kv_cells_used", "steps"), 0)
        | fields
    )
    prefill, decode = rates(fields) if fields else (0.0, 0.0)
    state, last_ns = known.get("state", 0), known.get("last_step_ns", 0)
    age_ms = max(0, time.monotonic_ns() - last_ns) // 1_000_000 if last_ns else None
    return {
        "state": WorkerState(state).name.lower() if state in WorkerState._value2member_map_ else "unknown",
        "loaded": known.get("loaded_permille", 0) / 1000,
        "slots_used": known["slots_used"],
        "preempted": known["preempted"],
        "queued_prompt_tokens": known["queued_prompt_tokens"],
        "kv_cells": known["kv_cells"],
        "kv_cells_used": known["kv_cells_used"],
        "kv_usage": round(known["kv_cells_used"] / known["kv_cells"], 4) if known["kv_cells"] else 0.0,
        "prefill_tokens_s": round(prefill, 1),
        "decode_tokens_s": round(decode, 1),
        "steps": known["steps"],
        "step_ms": round(known.get("step_ns", 0) / 1e6, 2),
        "last_step_age_ms": age_ms,
        "generated_tokens": known.get("generated_tokens", 0),
        "prompt_tokens": known.get("prompt_tokens", 0),
        "jobs": known.get("jobs", 0),
        "prefix_hits": known.get("prefix_hits", 0),
        "prefix_queries": known.get("prefix_queries", 0),
        "rss_bytes": known.get("rss_bytes", 0),
        "vram_total_bytes": known.get("vram_total_bytes", 0),
        "vram_used_bytes": known.get("vram_used_bytes", 0),
        "vram_wanted_bytes": known.get("vram_wanted_bytes", 0),
    }


def _masked(url: str) -> str:
    """Without the password."""
    scheme, _, rest = url.partition("://")
    _, at, place = rest.rpartition("@")
    return f"{scheme}://***@{place}" if at else url


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False) + "\n"
