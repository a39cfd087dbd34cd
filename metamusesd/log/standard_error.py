"""All stages · any process · standard error, without ever waiting for whoever reads it."""

from __future__ import annotations

import os
import select
import socket
import stat


class StandardError:
    """Writes whole lines to descriptor 2 as long as there is room for them.

    DANGER: O_NONBLOCK belongs to the open file, which other processes have as well: a shell, the embedded Redis. So a
    pipe or a terminal is opened a second time for ourselves; a socket is asked not to wait; a file never makes wait. A
    file is not opened again: writers with positions of their own would overwrite each other.
    """

    def __init__(self) -> None:
        self._file = (-1, -1)  # device and inode that descriptor 2 had when it was opened
        self._fd = -1  # ours, or 2
        self._socket: socket.socket | None = None
        self._polled = False  # it may make wait, and is ours only as it is: ask before
        self._torn = False  # the last line was cut: the next one begins a new one

    def write(self, line: bytes) -> bool:
        """False: there was no room, or nobody reads."""
        try:
            status = os.fstat(2)
            if (status.st_dev, status.st_ino) != self._file:
                self._open(status)
            data = b"\n" + line if self._torn else line
            written = self._put(data)
        except OSError:
            return False
        if written:
            self._torn = written < len(data)
        return written == len(data)

    def close(self) -> None:
        """Legal twice; the next line opens it again."""
        if self._socket is not None:
            self._socket.close()
        elif self._fd > 2:
            os.close(self._fd)
        self._file, self._fd, self._socket, self._polled = (-1, -1), -1, None, False

    def _open(self, status: os.stat_result) -> None:
        self.close()
        self._fd = 2
        if stat.S_ISSOCK(status.st_mode):
            self._socket = socket.socket(fileno=os.dup(2))
        elif stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode):
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._fd = os.open("/proc/self/fd/2", flags)
            except OSError:  # it belongs to somebody else
                self._polled = True
        self._file = (status.st_dev, status.st_ino)

    def _put(self, data: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._polled and not select.select((), (2,), (), 0)[1]:
            return 0
        return os.write(self._fd, data)
