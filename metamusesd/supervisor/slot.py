"""Supervisor · one child's place in the family: its lifecycle as a table, its present process, its history.

                 start            ready            died, budget left         due
    UNUSED ─────────────► STARTING ─────► READY ─────────────────► BACKOFF ──────► STARTING
                              │ died          │ stop                  │ stop
                              ├──► BACKOFF    ▼                       ▼
                              └──► FAILED  STOPPING ──── died ────► STOPPED        FAILED ──revive──► BACKOFF
                        READY ──slept──► ASLEEP ──wake──► BACKOFF, due at once

A move that the table does not have is a mistake of ours and raises.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from metamusesd.board import Block, SlotStatus
from metamusesd.config import Config
from metamusesd.control import EXIT_BAD_CONFIG, EXIT_BOOT, EXIT_DIED
from metamusesd.errors import GpuFull
from metamusesd.supervisor.restart import Died
from metamusesd.supervisor.spec import ChildSpec

MOVES = {
    SlotStatus.UNUSED: {"start": SlotStatus.STARTING, "stop": SlotStatus.STOPPED},
    SlotStatus.STARTING: {
        "ready": SlotStatus.READY,
        "died": SlotStatus.BACKOFF,
        "given up": SlotStatus.FAILED,
        "stop": SlotStatus.STOPPING,
        "slept": SlotStatus.ASLEEP,
    },
    SlotStatus.READY: {
        "died": SlotStatus.BACKOFF,
        "given up": SlotStatus.FAILED,
        "stop": SlotStatus.STOPPING,
        "slept": SlotStatus.ASLEEP,
    },
    SlotStatus.ASLEEP: {"wake": SlotStatus.BACKOFF, "stop": SlotStatus.STOPPED},
    SlotStatus.BACKOFF: {"start": SlotStatus.STARTING, "stop": SlotStatus.STOPPED, "slept": SlotStatus.ASLEEP},
    SlotStatus.STOPPING: {"ready": SlotStatus.STOPPING, "died": SlotStatus.STOPPED, "stop": SlotStatus.STOPPING},
    SlotStatus.STOPPED: {"stop": SlotStatus.STOPPED},
    SlotStatus.FAILED: {"stop": SlotStatus.FAILED, "revive": SlotStatus.BACKOFF},
}


@dataclass(slots=True)
class Slot:
    """One child. Only the supervisor's loop touches it; with a board row it writes that row at every move."""

    spec: ChildSpec
    row: Block | None = None
    status: SlotStatus = SlotStatus.UNUSED
    pid: int = 0  # 0: no process
    control: socket.socket | None = None
    generation: int = 0
    restarts: int = 0
    epoch: int = 0  # of the link that it has now; 0: none
    since_s: float = field(default_factory=time.monotonic)
    started_s: float = 0.0
    due_s: float = 0.0  # in BACKOFF: when it starts again
    kill_s: float = 0.0  # after this moment SIGKILL; 0: nobody wants it dead
    ready_s: float = 0.0  # when this process was ready
    retire_s: float = 0.0  # being recycled: its jobs have until then to end; 0: no
    recycling: bool = False  # it is to be replaced, and no fault of its own
    sleeping: bool = False  # it is recycling, and is to stay away until it is wanted (sleep.py)
    held: bool = False  # an operator has drained it: it gets no jobs until that is taken back
    emptied: bool = False  # held, and the dispatcher says that it has no job any more
    parked: bool = False  # a reload has it in hand: nobody else starts it, and it is not linked
    trial: bool = False  # its next process must pass the canary before it is ready
    born: tuple[object, ...] = ()  # what its present process was made of, see changes.py
    config: Config | None = None  # of its present process
    target: Config | None = None  # of its next one, while a reload is under way and has had it in hand
    we_killed: bool = False  # SIGKILL came from us
    was_stopped: bool = False  # a signal had stopped it when it was found hung: whoever sent it is to blame
    private_bytes: int = 0  # as last measured, workers only
    vram_bytes: int = 0  # what it wanted of its GPUs when it last loaded, noted when it falls asleep
    hung: str = ""  # why the watchdog killed it
    trouble: str = ""  # why it cannot be started, as last logged; vectors: why it serves, but not well
    was_ready: bool = False  # this process
    ever_ready: bool = False  # any process of this slot
    boot_deaths: int = 0
    permanent: bool = False
    last_exit: int | None = None  # as os.waitstatus_to_exitcode: negative is a signal
    last_error: dict[str, Any] | None = None
    deaths: deque[Died] = field(default_factory=lambda: deque(maxlen=1024))

    @property
    def name(self) -> str:
        """As in its specification."""
        return self.spec.name

    @property
    def tier(self) -> str:
        """That it serves; empty: it is no worker."""
        return self.spec.worker.tier if self.spec.worker else ""

    @property
    def drained(self) -> bool:
        """It is held and has no jobs; one without a link has none either."""
        return self.held and not self.retire_s and (self.emptied or not self.epoch)

    @property
    def no_room(self) -> bool:
        """Its last process found its GPU full, and left for that."""
        return self.last_exit == EXIT_BOOT and (self.last_error or {}).get("code") == GpuFull.code

    def move(self, event: str) -> None:
        """Go where the table says. KeyError: the table does not have this move."""
        status = MOVES[self.status][event]
        if status is not self.status:
            self.status, self.since_s = status, time.monotonic()
        self.publish()

    def another_chance(self) -> None:
        """Its past is forgotten: it starts, or goes on dying, as if it were new."""
        self.deaths.clear()
        self.boot_deaths, self.permanent, self.due_s = 0, False, 0.0
        if self.status is SlotStatus.FAILED:
            self.move("revive")

    def started(self, pid: int, control: socket.socket | None) -> None:
        """A new process lives here."""
        self.pid, self.control = pid, control
        self.restarts += self.generation > 0
        self.generation += 1
        self.started_s, self.kill_s, self.hung, self.epoch = time.monotonic(), 0.0, "", 0
        self.was_ready = self.permanent = self.recycling = self.we_killed = self.was_stopped = False
        self.ready_s = self.retire_s = 0.0
        self.emptied = self.sleeping = False
        self.private_bytes = 0
        self.trouble = ""
        self.move("start")

    def ready(self) -> None:
        """It said so."""
        self.was_ready = self.ever_ready = True
        self.boot_deaths = 0
        self.ready_s = time.monotonic()
        self.last_error = None
        self.move("ready")

    def buried(self, wait_status: int, explained: bool = False) -> None:
        """Its process has been reaped; what comes next is decided elsewhere. `explained`: see restart.py."""
        self.last_exit = os.waitstatus_to_exitcode(wait_status)
        self.permanent = self.permanent or self.last_exit == EXIT_BAD_CONFIG
        explained = explained or self.no_room  # nobody's fault: it is tried again for ever
        if not explained and not self.parked:
            self.boot_deaths = 0 if self.was_ready else self.boot_deaths + 1
        if not (self.recycling or self.parked):
            self.deaths.append(Died(time.monotonic(), explained))
        if self.control is not None:
            self.control.close()
        self.pid, self.control, self.epoch, self.kill_s, self.retire_s = 0, None, 0, 0.0, 0.0

    def kill(self, signum: int, then_kill_after_s: float | None = None) -> None:
        """Send a signal to its process, if there is one; SIGKILL follows when it does not leave in time."""
        if not self.pid:
            return
        self.we_killed = self.we_killed or signum == signal.SIGKILL
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError:
            return  # a zombie that the next sweep reaps
        if then_kill_after_s is not None:
            due_s = time.monotonic() + then_kill_after_s
            self.kill_s = min(self.kill_s, due_s) if self.kill_s else due_s

    def publish_patience(self, limit_s: float) -> None:
        """Show how long it may go without progress: for so long the dispatcher keeps its jobs."""
        if self.row is not None and self.row.get("patience_ms") != (limit_ms := int(limit_s * 1000)):
            self.row.write(patience_ms=limit_ms)

    def publish(self) -> None:
        """Show it on the board."""
        if self.row is None:
            return
        cores = self.spec.worker.cores if self.spec.worker else ()
        mask = sum(1 << core for core in cores if core < 64)
        last_exit = 0 if self.last_exit is None else self.last_exit & 0xFFFF_FFFF_FFFF_FFFF
        self.row.write(
            pid=self.pid,
            generation=self.generation,
            restarts=self.restarts,
            status=self.status,
            cores_mask=mask,
            since_ns=int(self.since_s * 1e9),
            last_exit=last_exit,
        )


def exit_code_of(slots: Sequence[Slot]) -> int:
    """The daemon's, when these were given up: a mistake that stays, a start that failed, or a death."""
    if all(slot.permanent for slot in slots):
        return EXIT_BAD_CONFIG
    return EXIT_DIED if any(slot.ever_ready for slot in slots) else EXIT_BOOT


def exit_text(code: int | None) -> str:
    """An exit code for people: 'exit 70', 'killed by SIGSEGV'."""
    if code is None:
        return "none"
    if code >= 0:
        return f"exit {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
