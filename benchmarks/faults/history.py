"""Faults benchmark · bench process · what producers and chaos did and saw, with times: the history that is judged."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.plan import Job


def now_ms() -> float:
    """The clock that this host's Redis uses for its stream ids as well."""
    return round(time.time() * 1000, 1)


@dataclass(slots=True)
class Sight:
    """One end of a job as one reader saw it."""

    who: str
    state: str
    content: str
    code: str = ""
    at_ms: float = 0.0


@dataclass(slots=True)
class Life:
    """One job as its producers saw it."""

    job: Job
    id: str  # the one that answers: of a race, the winner's
    accepted_ms: float = 0.0  # when a submit was first acknowledged; 0: never
    refused: str = ""  # the code of the refusal
    unsure: int = 0  # submits without an answer
    lost: int = 0  # times that the job was gone and was submitted again
    cancels: list[str] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)  # ids that must not exist: losers of a race
    wrongs: list[str] = field(default_factory=list)  # what a producer saw that cannot be
    notes: list[tuple[float, str]] = field(default_factory=list)

    def note(self, what: str) -> None:
        self.notes.append((now_ms(), what))


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that chaos did. `until_ms`: when its direct effect ended (SIGCONT, a new supervisor)."""

    at_ms: float
    what: str
    victim: str
    until_ms: float
    detail: str = ""


@dataclass(slots=True)
class History:
    """Everything of one run."""

    seed: int
    lives: list[Life] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    wrongs: list[str] = field(default_factory=list)  # of the family as a whole: orphans, starts that failed

    def life(self, job: Job) -> Life:
        made = Life(job, job.id)
        self.lives.append(made)
        return made

    def fault(self, at_ms: float, what: str, victim: str, detail: str = "") -> None:
        self.faults.append(Fault(at_ms, what, victim, now_ms(), detail))

    def near(self, start_ms: float, end_ms: float, margin_ms: float = 3000.0) -> list[Fault]:
        """The faults whose effect may have been felt between the two times."""
        return [
            fault for fault in self.faults if fault.at_ms - margin_ms < end_ms and fault.until_ms + margin_ms > start_ms
        ]

    def write(self, path: Path) -> None:
        """One JSON object a line."""
        with path.open("w") as out:
            for line in self._lines():
                out.write(json.dumps(line, ensure_ascii=False, default=_plain) + "\n")

    def _lines(self) -> Iterator[dict[str, Any]]:
        yield {"seed": self.seed, "wrongs": self.wrongs}
        for fault in self.faults:
            yield {"fault": asdict(fault)}
        for life in self.lives:
            yield {"life": asdict(life)}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value[:200].decode("latin-1")
    return sorted(value) if isinstance(value, frozenset) else str(value)
