"""All stages · any process · the journal's own protocol: one datagram a line, every field of its own.

    NAME=value\\n                                 a value without line ends
    NAME\\n  length u64 little endian  value \\n   any other

Who runs under systemd with standard error in the journal is told so by $JOURNAL_STREAM: device:inode of that stream.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Mapping

from metamusesd.log.events import MESSAGE_IDS
from metamusesd.log.lines import Record, encoded, shorten, words

SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "metamusesd"
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}
# The names that are promised; every other field is METAMUSES_ and its own name. What is said about a child is found by
# METAMUSES_WORKER as well, whether the child itself says it or the supervisor.
NAMES = {"job": "METAMUSES_JOB_ID", "child": "METAMUSES_WORKER"}
_LENGTH = struct.Struct("<Q")


def is_standard_error(environ: Mapping[str, str]) -> bool:
    """Whether what is written to standard error goes to the journal anyway."""
    try:
        stat = os.fstat(2)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def datagram(level: str, record: Record, _now_s: float = 0.0) -> bytes:
    """One event. The journal takes the time itself."""
    event = str(record["event"])
    pairs = [("MESSAGE", words(record)), ("PRIORITY", str(PRIORITIES[level])), ("SYSLOG_IDENTIFIER", IDENTIFIER)]
    if event in MESSAGE_IDS:
        pairs.append(("MESSAGE_ID", MESSAGE_IDS[event]))
    pairs += [(_name(key), shorten(str(value))) for key, value in record.items()]
    return b"".join(_pair(name, value) for name, value in pairs)


class Journal:
    """The journal's socket. One a process: a forked child closes it, and has its own at its first line."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def write(self, data: bytes) -> bool:
        """False: the journal is not there, its socket is full, or this is more than a datagram may hold. Does not
        wait."""
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.sendto(data, socket.MSG_DONTWAIT, self._path)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Legal twice; the next line opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _name(key: str) -> str:
    """The journal takes A-Z, 0-9 and _, at most 64 of them."""
    return NAMES.get(key) or f"METAMUSES_{re.sub('[^A-Z0-9_]', '_', key.upper())}"[:64]


def _pair(name: str, value: str) -> bytes:
    data = encoded(value)
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    return name.encode() + b"\n" + _LENGTH.pack(len(data)) + data + b"\n"
