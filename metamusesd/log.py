"""Events with fields, on standard error: JSON lines for machines, one coloured line for people. Standard library only.

    log = get_logger("dispatcher", pid=os.getpid())
    log.info("job settled", job=id, state="done", total_ms=812)

A logger's own fields are bound once. Prompts and answers are never logged. A blocked or broken standard error loses
lines, never a process: a write that fails is counted in `dropped`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

LEVELS = ("debug", "info", "warning", "error")
_COLOURS = {"debug": "2", "info": "36", "warning": "33", "error": "31"}


@dataclass(slots=True)
class Logger:
    """Writes events. Make one with `get_logger`; derive one with `bind`."""

    fields: dict[str, Any] = field(default_factory=dict)
    threshold: ClassVar[int] = LEVELS.index("info")
    console: ClassVar[bool] = False
    dropped: ClassVar[int] = 0

    def bind(self, **fields: Any) -> Logger:
        """A logger that says these fields with every event."""
        return Logger({**self.fields, **fields})

    def debug(self, event: str, **fields: Any) -> None:
        """For a developer who looks for something."""
        self._write(0, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """What an operator wants to find afterwards."""
        self._write(1, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something went wrong and was survived."""
        self._write(2, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Somebody should look at this."""
        self._write(3, event, fields)

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if level < Logger.threshold:
            return
        shown = {**self.fields, **fields}
        line = _console_line(level, event, shown) if Logger.console else _json_line(level, event, shown)
        try:
            os.write(2, line.encode("utf-8", "backslashreplace"))
        except OSError:
            Logger.dropped += 1


def _json_line(level: int, event: str, fields: dict[str, Any]) -> str:
    record = {"time": round(time.time(), 3), "level": LEVELS[level], "event": event, **fields}
    return json.dumps(record, default=str, ensure_ascii=False) + "\n"


def _console_line(level: int, event: str, fields: dict[str, Any]) -> str:
    name = LEVELS[level]
    who = fields.pop("process", "")
    rest = " ".join(f"\x1b[2m{key}=\x1b[0m{value}" for key, value in fields.items())
    clock = time.strftime("%H:%M:%S")
    return f"\x1b[2m{clock}\x1b[0m \x1b[{_COLOURS[name]}m{name:<7}\x1b[0m {who:<11} {event}  {rest}\n"


def configure(level: str, form: str) -> None:
    """Once a process, before the first event; children inherit it. `form`: auto, console or json."""
    Logger.threshold = LEVELS.index(level)
    Logger.console = form == "console" or (form == "auto" and sys.stderr.isatty())


def get_logger(process: str, **fields: Any) -> Logger:
    """A logger for one process, named as in the process title: supervisor, dispatcher, fast-0."""
    return Logger({"process": process, **fields})
