"""All stages · any process · which lines are one too many. Pure: the clock is the caller's.

The same event of the same process about the same child is written so often within a window; further ones are held, and
when the window is over the last of them is written with `repeated`: how many there were. Jobs do not tell events apart,
but events that name one have a bound of their own, so that a job's story is cut only by a flood of jobs.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

MOST_KEYS = 500

Record = MutableMapping[str, Any]
_Key = tuple[str, object, object, object]


@dataclass(slots=True)
class _Window:
    ends_s: float
    written: int = 0
    held: int = 0
    last: Record | None = None


class Repeats:
    """The windows of one process. `due_s`: when `due` has something to tell."""

    def __init__(self, most: int = 50, most_jobs: int = 1000, window_s: float = 10.0) -> None:
        self.due_s = math.inf
        self._most, self._most_jobs, self._window_s = most, most_jobs, window_s
        self._windows: dict[_Key, _Window] = {}

    def may(self, level: str, record: Record, now_s: float) -> bool:
        """Whether this one is to be written now; else it is held."""
        key = (level, record.get("event"), record.get("process"), record.get("child") or record.get("worker"))
        window = self._windows.get(key)
        if window is None or (now_s >= window.ends_s and not window.held):
            if window is None and len(self._windows) >= MOST_KEYS and not self._room(now_s):
                return True
            window = self._windows[key] = _Window(now_s + self._window_s)
        if window.written < (self._most_jobs if "job" in record else self._most):
            window.written += 1
            return True
        window.held += 1
        window.last = record
        self.due_s = min(self.due_s, window.ends_s)
        return False

    def due(self, now_s: float) -> list[tuple[str, Record]]:
        """Level and record of each kind that was held in a window that is over; now it is forgotten."""
        found: list[tuple[str, Record]] = []
        for key, window in list(self._windows.items()):
            if window.last is not None and now_s >= window.ends_s:
                found.append((key[0], {**window.last, "repeated": window.held}))
                del self._windows[key]
        self.due_s = min((window.ends_s for window in self._windows.values() if window.held), default=math.inf)
        return found

    def _room(self, now_s: float) -> bool:
        """Forget windows that are over; False: there is none. Then too many kinds of events come to hold any."""
        over = [key for key, window in self._windows.items() if now_s >= window.ends_s and not window.held]
        for key in over:
            del self._windows[key]
        return bool(over)
