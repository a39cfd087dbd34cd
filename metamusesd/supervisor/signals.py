"""Supervisor · signals are only noted in their handlers; the loop hears them.

The wake-up descriptor ends the loop's wait; what arrived stands in the notes, not in its bytes, because a storm may
fill it.
"""

from __future__ import annotations

import signal
import socket
from types import FrameType
from typing import Any

HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Signals:
    """Open it on the main thread; `reader` is for the selector."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        self._noted: list[int] = []
        self._before: dict[int, Any] = {}

    def open(self) -> None:
        """From now on we hear."""
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for signum in HEARD:
            self._before[signum] = signal.signal(signum, self._note)

    def take(self) -> list[int]:
        """What arrived since the last call, in order. SIGCHLD only wakes: the loop looks for the dead anyway."""
        try:
            while self.reader.recv(4096):
                pass
        except BlockingIOError:
            pass
        noted, self._noted = self._noted, []
        return noted

    def close(self) -> None:
        """As it was before `open`."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
        self.reader.close()
        self._writer.close()

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        if signum != signal.SIGCHLD:
            self._noted.append(signum)
