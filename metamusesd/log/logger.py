"""All stages · any process · the loggers, and what those of one process share.

Logger.info(event, fields) ─► repeats: one too many? ─► a line: JSON, colours, the journal's ─► written, or counted
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from metamusesd.log import journal, lines
from metamusesd.log.bound import BoundLoggerBase, DropEvent
from metamusesd.log.journal import Journal
from metamusesd.log.lines import Record
from metamusesd.log.repeats import Repeats
from metamusesd.log.standard_error import StandardError

if TYPE_CHECKING:
    from metamusesd.config import Log

EVER_S = sys.float_info.max
LEVELS = ("debug", "info", "warning", "error")
_FORMS: dict[str, Callable[[str, Record, float], bytes]] = {
    "json": lines.json_line, "console": lines.console_line, "journal": journal.datagram,
}  # fmt: skip


class Output:
    """Where the lines of this process go, and what is known of those that did not. One a process."""

    def __init__(self) -> None:
        self.threshold, self.prompts = LEVELS.index("info"), False
        self.lost = 0  # lines, since one was written the last time
        self._who: object = ""  # who wrote the last one
        self.repeats, self._bounds = Repeats(), (50, 1000, 10.0)
        self._sink: StandardError | Journal = StandardError()
        self._form: Callable[[str, Record, float], bytes] = lines.json_line

    def set_up(self, level: str, form: str, bounds: tuple[int, int, float], *, prompts: bool, journal: str) -> None:
        """See `configure`."""
        self.tell_repeats(EVER_S)
        self._sink.close()
        self.threshold, self.prompts, self._bounds = LEVELS.index(level), prompts, bounds
        self.repeats, self._form = Repeats(*bounds), _FORMS[form]
        self._sink = Journal(journal) if form == "journal" else StandardError()

    def write(self, level: str, record: Record) -> None:
        """One line; before it, how many were lost, when there is room again. Never raises, never waits."""
        self._who = record.get("process")
        self.tell_lost()
        if self.lost or not self._put(level, record):
            self.lost += 1

    def tell_lost(self) -> None:
        """How many lines were lost, if any were and there is room now."""
        if self.lost:
            told = {"process": self._who, "event": "log lines were lost", "lost": self.lost}
            if self._put("warning", told):
                self.lost = 0

    def tell_repeats(self, now_s: float) -> None:
        """What was held in windows that are over."""
        for level, record in self.repeats.due(now_s):
            self.write(level, record)

    def forked(self) -> None:
        """In a new child: descriptors are its parent's, and so is what the parent has still to tell."""
        self._sink.close()
        self.lost, self.repeats = 0, Repeats(*self._bounds)

    def _put(self, level: str, record: Record) -> bool:
        try:
            return self._sink.write(self._form(level, record, time.time()))
        except Exception:  # a value that cannot be shown must not end whoever wanted to show it
            return False


def _hold_repeats(output: Output, level: str, record: Record) -> Record:
    now_s = time.monotonic()
    if now_s >= output.repeats.due_s:
        output.tell_repeats(now_s)
    if not output.repeats.may(level, record, now_s):
        raise DropEvent
    return record


class Logger(BoundLoggerBase):
    """Writes events. Make one with `get_logger`; `bind` makes one that says more fields with every event."""

    def debug(self, event: str, **fields: Any) -> None:
        """For a developer who looks for something."""
        if not _OUTPUT.threshold:
            self._say("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """What an operator wants to find afterwards."""
        if _OUTPUT.threshold <= 1:
            self._say("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something went wrong and was survived."""
        if _OUTPUT.threshold <= 2:
            self._say("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Somebody should look at this."""
        self._say("error", event, fields)

    def _say(self, level: str, event: str, fields: dict[str, Any]) -> None:
        try:
            _, record = self._process_event(level, event, fields)
        except DropEvent:
            return
        except Exception:  # a child's name that is no name: whoever speaks must not suffer for it
            _OUTPUT.lost += 1
            return
        _OUTPUT.write(level, dict(record))


def configure(
    level: str, form: str, *, prompts: bool = False, repeats: tuple[int, int, float] = (50, 1000, 10.0),
    journal_socket: str = journal.SOCKET,
) -> None:  # fmt: skip
    """Before the first event, and again when that has changed; children inherit it. `form`: auto, console, json or
    journal. `repeats`: lines of one event a window, those that name a job, the window in seconds."""
    if form == "auto":
        native = journal.is_standard_error(os.environ) and os.path.exists(journal_socket)  # noqa: PTH110 (no Path here)
        form = "journal" if native else "console" if os.isatty(2) else "json"
    _OUTPUT.set_up(level, form, repeats, prompts=prompts, journal=journal_socket)


def obey(options: Log) -> None:
    """As `configure`, from [log]."""
    bounds = (options.repeats, options.repeats_jobs, options.repeat_s)
    configure(options.level, options.format, prompts=options.prompts, repeats=bounds)


def get_logger(process: str, **fields: Any) -> Logger:
    """A logger for one process, named as in the process title: supervisor, dispatcher, fast-0."""
    return Logger(_OUTPUT, [_hold_repeats], {"process": process, **fields})


def tells_prompts() -> bool:
    """Whether the configuration wants prompts and answers in the log."""
    return _OUTPUT.prompts


def tick() -> None:
    """Tell what was lost, and what was held when it is time to. Loops call it: a process that has no more to say would
    never tell."""
    _OUTPUT.tell_lost()
    now_s = time.monotonic()
    if now_s >= _OUTPUT.repeats.due_s:
        _OUTPUT.tell_repeats(now_s)


def flush() -> None:
    """At the end of a process: tell what was lost and what was held, whatever the time."""
    _OUTPUT.tell_lost()
    _OUTPUT.tell_repeats(EVER_S)


_OUTPUT = Output()
os.register_at_fork(after_in_child=_OUTPUT.forked)
