"""Supervisor · how a child died: looked up while its row of the board and its stacks are still there.

The kernel says only the signal. Who sent a SIGKILL is found by exclusion: we know our own, and the kernel counts the
processes that it killed for want of memory; what is left came from outside. A process that kills itself with SIGKILL
cannot be told from that.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metamusesd.board import WORKER_FIELDS, Board, WorkerState
from metamusesd.control import EXIT_BAD_CONFIG
from metamusesd.supervisor import proc
from metamusesd.supervisor.evidence import Evidence
from metamusesd.supervisor.restart import is_explained
from metamusesd.supervisor.slot import Slot, exit_text
from metamusesd.supervisor.spec import Kind

EXIT_REASONS = ("done", "refused", "error", "signal", "killed", "out_of_memory", "hung", "stopped", "replaced")
COUNT_S = 5.0
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Death:
    """`killed`: from outside, or by us for a reason that is no fault of its jobs: somebody had stopped it, or it was
    being recycled. `explained`: see restart.py."""

    exit: int
    how: str
    lived_s: float
    killed: bool = False
    explained: bool = False
    phase: str = ""
    rss_mb: int = 0
    stacks: str = ""
    hung: str = ""

    def evidence(self, worker: str, pid: int) -> dict[str, Any]:
        """For the dispatcher, as control.py draws it."""
        return {
            "worker": worker, "pid": pid, "how": self.how, "phase": self.phase, "rss_mb": self.rss_mb,
            "hung": self.hung, "stacks": self.stacks,
        }  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """For the log: what there is to say."""
        said = {"phase": self.phase, "rss_mb": self.rss_mb, "stacks": self.stacks, "hung": self.hung}
        return {"how": self.how, "lived_s": round(self.lived_s, 2)} | {
            key: value for key, value in said.items() if value
        }


class Coroner:
    """Examines the dead before their rows are cleared."""

    def __init__(self, board: Board, evidence: Evidence) -> None:
        self._board, self._evidence = board, evidence
        self._kills = self._newer_kills = proc.memory_kills()  # what is known to belong to nobody of ours
        self._counted_s = 0.0
        self.exits: Counter[tuple[str, str]] = Counter()  # by child and reason, for the metrics

    def count(self, now_s: float) -> None:
        """At every turn. DANGER: the kernel counts when it sends the signal, and a large process takes seconds to die;
        so what is compared with is the count of COUNT_S or more ago."""
        if now_s - self._counted_s >= COUNT_S:
            self._counted_s, self._kills, self._newer_kills = now_s, self._newer_kills, proc.memory_kills()

    def examine(self, slot: Slot, wait_status: int) -> Death:
        """Call it once a death, before anything is cleared."""
        code, now_s = os.waitstatus_to_exitcode(wait_status), time.monotonic()
        kills = proc.memory_kills()
        starved = code == -signal.SIGKILL and not slot.we_killed and kills > self._kills
        if starved:
            self._kills = self._newer_kills = kills
        ours = slot.we_killed and not slot.was_stopped and not (slot.recycling and not slot.hung)
        killed = code == -signal.SIGKILL and not starved and not ours
        row = self._row(slot)
        explained = is_explained(
            was_ready=slot.was_ready, worked=self._worked(slot, row), killed=killed,
            ready_for_s=now_s - slot.ready_s if slot.was_ready else 0.0, hung=bool(slot.hung),
        )  # fmt: skip
        self.exits[slot.name, _reason(slot, code, starved)] += 1
        return Death(
            exit=code, how=_how(slot, code, starved), lived_s=now_s - slot.started_s, killed=killed, hung=slot.hung,
            explained=explained, phase=phase_of(row, self._owed(slot)) if row else "",
            rss_mb=(row.get("rss_bytes", 0) or slot.private_bytes) // MIB,
            stacks=self._evidence.keep(slot.name, slot.generation, code < 0 or bool(slot.hung)),
        )  # fmt: skip

    def _row(self, slot: Slot) -> Mapping[str, int]:
        """Its last words on the board; field by field when it died while it wrote."""
        if slot.spec.kind is not Kind.WORKER:
            return {}
        block = self._board.workers[slot.spec.row]
        return block.read() or {name: block.get(name) for name in WORKER_FIELDS}

    def _worked(self, slot: Slot, row: Mapping[str, int]) -> bool:
        """This process was given work (a worker), settled some (the dispatcher), answered (vectors, Redis)."""
        if slot.spec.kind is Kind.WORKER:
            return self._owed(slot) > 0 or row["jobs"] > 0 or row["generated_tokens"] > 0
        if slot.spec.kind is Kind.VECTORS:
            return self._board.vectors.get("done") > 0
        return slot.spec.kind is Kind.REDIS or self._board.dispatcher.get("settled") > 0

    def _owed(self, slot: Slot) -> int:
        return self._board.frames_sent(slot.spec.row) if slot.epoch else 0


def phase_of(row: Mapping[str, int], frames_sent: int) -> str:
    """What a worker was at, for people."""
    state = row.get("state", 0)
    if state not in WorkerState._value2member_map_:
        return "unknown"
    if state == WorkerState.TAKING:
        return "taking jobs"
    if state != WorkerState.LOADING and not row.get("slots_used") and frames_sent > row.get("frames_received", 0):
        return "taking jobs"
    if state in (WorkerState.PREFILL, WorkerState.DECODE) and not row.get("slots_used", 1):
        return "preparing"
    return WorkerState(state).name.lower()


def _reason(slot: Slot, code: int, starved: bool) -> str:
    if slot.hung:
        return "stopped" if slot.was_stopped else "hung"
    if starved:
        return "out_of_memory"
    if slot.recycling or slot.parked:
        return "replaced"
    if code >= 0:
        return {0: "done", EXIT_BAD_CONFIG: "refused"}.get(code, "error")
    return "killed" if code == -signal.SIGKILL else "signal"


def _how(slot: Slot, code: int, starved: bool) -> str:
    text = exit_text(code)
    if starved:
        return f"{text} (out of memory)"
    if slot.was_stopped:
        return f"{text} (stopped from outside)"
    if code == -signal.SIGKILL and not slot.we_killed:
        return f"{text} (from outside)"
    return f"{text} (hung: {slot.hung})" if slot.hung else text
