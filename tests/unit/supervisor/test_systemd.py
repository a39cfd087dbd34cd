"""The notify protocol, spoken to a socket of ours."""

from __future__ import annotations

import os
import socket

import pytest

from metamusesd.supervisor.systemd import Notifier, inherited


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


def test_a_socket_is_kept_and_forgotten(tmp_path, listener):
    """FDSTORE carries the descriptor itself and its name; FDSTOREREMOVE the name."""
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    with socket.socket(socket.AF_UNIX) as mine:
        mine.bind(str(tmp_path / "mine"))
        notifier.keep("health.kept", mine)
        message, fds, _, _ = socket.recv_fds(listener, 4096, 4)
        assert message == b"FDSTORE=1\nFDNAME=health.kept"
        with socket.socket(fileno=fds[0]) as theirs:
            assert theirs.getsockname() == mine.getsockname()
    assert notifier.is_heard
    notifier.forget("health.kept")
    notifier.close()
    assert heard(listener) == ["FDSTOREREMOVE=1\nFDNAME=health.kept"]
    assert not notifier.is_heard


def test_sockets_of_another_process_are_not_ours():
    """LISTEN_PID of somebody else, or nonsense: nothing is taken, and no child sees the variables."""
    for given in ({"LISTEN_FDS": "2", "LISTEN_PID": "1"}, {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())}, {}):
        environ = dict(given, LISTEN_FDNAMES="health:metrics")
        assert inherited(environ) == []
        assert environ == {}
