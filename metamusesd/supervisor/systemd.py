"""Supervisor · the notify protocol of systemd, spoken without its library. Silent when nobody listens."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping


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

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
        except OSError:
            pass  # systemd is busy or gone; the next message tries again
