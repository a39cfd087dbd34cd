"""A dispatcher of a few lines, for tests of the supervisor: beats, notes, misbehaves when a file says so."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time

from metamusesd import control
from metamusesd.control import Birth


def note(birth: Birth, event: str, **fields: object) -> None:
    """One line in <state_dir>/notes, in one write."""
    line = json.dumps({"who": birth.name, "pid": os.getpid(), "event": event, **fields}) + "\n"
    fd = os.open(birth.config.state_dir / "notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, line.encode())
    os.close(fd)


def mischief(birth: Birth) -> str:
    """What the test wants this child to do, by its name; read again at every look."""
    path = birth.config.state_dir / f"mischief-{birth.name}"
    return path.read_text() if path.exists() else ""


def main(birth: Birth) -> int:
    signal.signal(signal.SIGTERM, lambda *_: (note(birth, "term"), sys.exit(0)))
    note(birth, "born", generation=birth.generation, instance=birth.instance, listen=os.environ.get("LISTEN_FDS", ""))
    if mischief(birth).startswith("exit"):
        return int(mischief(birth).split()[1])
    control.send(birth.control, {"say": "ready"})
    ends: dict[int, int] = {}  # descriptor → row
    while True:
        if mischief(birth) != "no heartbeat":
            birth.board.dispatcher.write(beat_ns=time.monotonic_ns(), redis_ok=1, pid=os.getpid())
        readable, _, _ = select.select([birth.control, *ends], [], [], 0.05)
        for fd in set(readable) & set(ends):
            row, said = ends[fd], read(fd)
            note(birth, "read" if said else "eof", row=row, said=said.decode())
            if not said:
                os.close(fd)
                del ends[fd]
        if birth.control in readable and not obey(birth, ends):
            return 0


def read(fd: int) -> bytes:
    """What the worker says; nothing at EOF. A worker that died with our words unread resets the connection."""
    with contextlib.suppress(ConnectionResetError):
        return os.read(fd, 100)
    return b""


def obey(birth: Birth, ends: dict[int, int]) -> bool:
    """One message of the supervisor. False: leave."""
    received = control.receive(birth.control)
    if received is None:
        return False
    message, fd = received
    note(birth, message.pop("do"), **message)
    if fd is not None:
        ends[fd] = message["row"]
        with contextlib.suppress(OSError):
            os.write(fd, b"hello from the dispatcher")
    if "within_s" not in message or mischief(birth) == "never drains":
        return True
    birth.board.dispatcher.write(draining=1)
    note(birth, "drained")
    return False
