"""The supervisor as systemd sees it: over a notify socket of ours."""

from __future__ import annotations

import signal
import socket

import pytest

from tests.process.supervisor_rig import PATIENCE_S, Daemon, kill

pytestmark = pytest.mark.timeout(90)


def test_the_life_of_the_service_in_messages(tmp_path):
    """Ready when work can be taken, a status line, the watchdog fed, stopping at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(PATIENCE_S)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}
        with Daemon(tmp_path / "d", environ) as daemon:
            said: list[str] = []
            while not {"READY=1", "WATCHDOG=1", "STATUS=ready: 2/2 workers ready, 0 queued, 0 running"} <= set(said):
                said.append(listener.recv(4096).decode())
            daemon.signal(signal.SIGTERM)
            while "STOPPING=1" not in said:
                said.append(listener.recv(4096).decode())
            assert daemon.wait() == 0
            assert said.count("READY=1") == 1


def test_a_slow_end_asks_for_time(tmp_path):
    """While a drain lasts, systemd is asked for more time: TimeoutStopSec need not know daemon.drain_s."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(PATIENCE_S)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with Daemon(tmp_path / "d", environ) as daemon:
            while listener.recv(4096) != b"READY=1":
                pass
            kill(daemon.children()["dispatcher"], signal.SIGSTOP)
            daemon.signal(signal.SIGTERM)
            while listener.recv(4096) != b"STOPPING=1":
                pass
            while listener.recv(4096) != b"EXTEND_TIMEOUT_USEC=15000000":
                pass
