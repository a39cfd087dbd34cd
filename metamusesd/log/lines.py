"""All stages · any process · an event as a line: JSON for machines, colours for people, plain words for both. Pure."""

from __future__ import annotations

import json
import time
from collections.abc import MutableMapping
from typing import Any

MOST_CHARS = 4000  # of one value

Record = MutableMapping[str, Any]
_COLOURS = {"debug": "2", "info": "36", "warning": "33", "error": "31"}


def shorten(text: str, most: int = MOST_CHARS) -> str:
    """At most so much of it, and how much it was."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def json_line(level: str, record: Record, now_s: float) -> bytes:
    """One JSON object: time (seconds since the epoch), level, event, the fields as they were given."""
    shown = {"time": round(now_s, 3), "level": level, "event": record["event"], **record}
    for key, value in shown.items():
        if type(value) is str and len(value) > MOST_CHARS:
            shown[key] = shorten(value)
    return encoded(json.dumps(shown, default=_plain, ensure_ascii=False) + "\n")


def console_line(level: str, record: Record, now_s: float) -> bytes:
    """One line in colours, on the local clock."""
    clock = time.strftime("%H:%M:%S", time.localtime(now_s))
    who, event = record.get("process", ""), one_line(record["event"])
    rest = " ".join(f"\x1b[2m{key}=\x1b[0m{value}" for key, value in _shown(record))
    return encoded(f"\x1b[2m{clock}\x1b[0m \x1b[{_COLOURS[level]}m{level:<7}\x1b[0m {who:<11} {event}  {rest}\n")


def words(record: Record) -> str:
    """Who, what, and the fields: what `journalctl` shows."""
    said = " ".join((one_line(record["event"]), *(f"{key}={value}" for key, value in _shown(record))))
    return f"{record.get('process', '')}: {said}"


def one_line(value: object) -> str:
    """As text without line ends and escapes: nothing that comes from outside may forge a line, or paint one."""
    text = shorten(value if type(value) is str else str(_plain(value)))
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def encoded(text: str) -> bytes:
    """Lone surrogates, which UTF-8 has no bytes for, are written as escapes."""
    return text.encode("utf-8", "backslashreplace")


def _shown(record: Record) -> list[tuple[str, str]]:
    return [(key, one_line(value)) for key, value in record.items() if key not in ("event", "process")]


def _plain(value: object) -> object:
    """What JSON does not know, as text. A value that cannot even be printed has a name."""
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"
