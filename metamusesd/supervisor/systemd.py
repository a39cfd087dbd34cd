"""Supervisor · systemd's protocols, spoken without its library: what it is told, and the sockets that it hands over.

Silent when nobody listens.
"""

from __future__ import annotations

import array
import os
import socket
import time
from collections.abc import Iterable, MutableMapping

FIRST_FD = 3  # SD_LISTEN_FDS_START


class Notifier:
    """Takes NOTIFY_SOCKET out of the environment, so that no child inherits it. Never blocks, never raises."""

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        mine = not pid or pid == str(os.getpid())
        self.watchdog_s = int(usec) / 1e6 if usec.isdigit() and mine else 0.0
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address else None
        self._fed_s = 0.0
        self._status = ""
        self._is_ready = False

    def ready(self) -> None:
        """Once: the service can take work."""
        if not self._is_ready:
            self._is_ready = True
            self._send("READY=1")

    def reloading(self) -> None:
        """Another configuration is being put in force; `reloaded` must follow."""
        if self._is_ready:
            self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """It is, or it was refused: the service goes on."""
        if self._is_ready:
            self._send("READY=1")

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows; sent when it changed."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """A stop has begun."""
        self._send("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """A slow start or stop needs so much more time from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    @property
    def is_heard(self) -> bool:
        """There is a systemd, and it has been told no end."""
        return self._socket is not None

    def keep(self, name: str, kept: socket.socket) -> None:
        """Have this socket kept over a restart of the service, if the unit has a FileDescriptorStoreMax."""
        self._send(f"FDSTORE=1\nFDNAME={name}", [kept.fileno()])

    def forget(self, name: str) -> None:
        """What is kept under this name is not wanted any more."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def feed(self) -> None:
        """Show life to the watchdog; sends at most one message in half its interval."""
        now_s = time.monotonic()
        if self.watchdog_s and now_s - self._fed_s >= min(self.watchdog_s / 4, self.watchdog_s / 2 - 0.25):
            self._fed_s = now_s
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """No more messages."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str, fds: Iterable[int] = ()) -> None:
        if self._socket is None:
            return
        numbers = array.array("i", fds)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if numbers else []
        try:
            self._socket.sendmsg([message.encode()], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
        except OSError:
            pass  # systemd is busy or gone; the next message tries again


def inherited(environ: MutableMapping[str, str] | None = None) -> list[tuple[str, socket.socket]]:
    """(name, socket) of each descriptor that systemd has handed to this process; once. Takes their variables out of the
    environment, so that no child believes to have been given them; closes what is no socket."""
    environ = os.environ if environ is None else environ
    count, pid, names = (environ.pop(name, "") for name in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    named = names.split(":") if names else []
    found = []
    for position in range(int(count)):
        fd = FIRST_FD + position
        try:
            os.set_inheritable(fd, False)
            found.append((named[position] if position < len(named) else "", socket.socket(fileno=fd)))
        except OSError:  # no socket, or nothing at all
            _close(fd)
    return found


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass  # it was not open
