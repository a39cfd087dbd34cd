"""The notify protocol, spoken to a socket of ours."""

from __future__ import annotations

import os
import socket

import pytest

from metamusesd.supervisor.systemd import Notifier


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        yield listener


def heard(listener: socket.socket) -> list[str]:
    listener.setblocking(False)
    found = []
    try:
        while True:
            found.append(listener.recv(4096).decode())
    except BlockingIOError:
        return found


def test_it_says_what_systemd_wants_to_hear(tmp_path, listener):
    """READY once, STATUS when it changes, the watchdog at most every half interval, STOPPING."""
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier(environ)
    assert environ == {}
    for _ in range(3):
        notifier.ready()
        notifier.status("2/2 workers ready")
        notifier.feed()
    notifier.extend(1.5)
    notifier.stopping()
    notifier.close()
    assert heard(listener) == [
        "READY=1",
        "STATUS=2/2 workers ready",
        "WATCHDOG=1",
        "EXTEND_TIMEOUT_USEC=1500000",
        "STOPPING=1",
    ]


def test_abstract_sockets_work():
    """systemd may name an abstract socket with an @."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("")
        address = listener.getsockname().decode()
        notifier = Notifier({"NOTIFY_SOCKET": "@" + address[1:]})
        notifier.ready()
        notifier.close()
        assert heard(listener) == ["READY=1"]


def test_without_systemd_it_is_silent():
    """No socket, another process' watchdog, a socket that is gone: nothing is sent and nothing raises."""
    notifier = Notifier({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"})
    assert notifier.watchdog_s == 0
    gone = Notifier({"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "x"})
    for each in (notifier, gone):
        each.ready()
        each.feed()
        each.stopping()
        each.close()
