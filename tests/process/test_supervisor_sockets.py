"""Where health is answered: on TCP, on sockets that systemd hands over, on those that it has kept over a restart."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.supervisor_rig import PATIENCE_S, Daemon, until

pytestmark = pytest.mark.timeout(90)

ACTIVATE = """
import fcntl, os, sys
fds = [int(fd) for fd in sys.argv[1].split(",")]
held = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]
for number, fd in enumerate(held, start=3):
    os.dup2(fd, number)
os.closerange(3 + len(fds), 256)
os.environ |= {"LISTEN_FDS": str(len(fds)), "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": sys.argv[2]}
os.execv(sys.argv[3], sys.argv[3:])
"""


class Activated(Daemon):
    """Started as systemd starts a service that has sockets: they are descriptors 3, 4, …"""

    sockets: dict[str, socket.socket]

    def command(self, *arguments: str) -> list[str]:
        fds = ",".join(str(each.fileno()) for each in self.sockets.values())
        return [sys.executable, "-c", ACTIVATE, fds, ":".join(self.sockets), *arguments]

    def pass_fds(self) -> list[int]:
        return [each.fileno() for each in self.sockets.values()]


@contextlib.contextmanager
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def free_port() -> int:
    with tcp() as listener:
        return listener.getsockname()[1]


def open_sockets(pid: int) -> set[str]:
    links = Path(f"/proc/{pid}/fd")
    found = set()
    for entry in links.iterdir():
        with contextlib.suppress(OSError):
            found.add(os.readlink(entry))
    return found


def test_the_same_four_paths_on_tcp(tmp_path):
    """With health.tcp both listeners answer, out of the same bound for connections."""
    port = free_port()
    with Daemon(tmp_path / "d", health__tcp=f"127.0.0.1:{port}") as daemon:
        daemon.ready()
        assert get(port, "/livez") == (200, '{"alive": true}\n') == daemon.get("/livez")
        assert get(port, "/readyz")[0] == 200
        assert json.loads(get(port, "/status")[1])["pid"] == daemon.process.pid
        assert "metamusesd_ready 1" in get(port, "/metrics")[1]
        assert get(port, "/other")[0] == 404
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        try:
            assert daemon.get("/livez")[0] == 200
        finally:
            for client in crowd:
                client.close()


def test_without_the_option_nothing_listens_on_tcp(tmp_path):
    """The default is the UNIX socket alone."""
    with Daemon(tmp_path / "d") as daemon:
        inodes = {link[8:-1] for link in open_sockets(daemon.ready().process.pid) if link.startswith("socket:[")}
        for table in ("tcp", "tcp6"):
            lines = Path(f"/proc/{daemon.process.pid}/net/{table}").read_text().splitlines()[1:]
            assert not [line for line in lines if line.split()[9] in inodes]


def test_an_address_that_is_taken_stops_the_start_and_is_named(tmp_path):
    """Nobody is left to find out later that his metrics come from somebody else."""
    with tcp() as taken, Daemon(tmp_path / "d", health__tcp=f"127.0.0.1:{taken.getsockname()[1]}") as daemon:
        assert daemon.wait() == 70
        [said] = [event["problem"] for event in daemon.events() if event["event"] == "the supervisor cannot go on"]
        assert "health.tcp" in said and "choose another port" in said


def test_sockets_of_a_socket_unit_are_used_as_they_are(tmp_path):
    """The daemon serves them, changes neither path nor rights, leaves them behind, and no child has them or hears of
    them; it makes no socket of its own."""
    path = tmp_path / "health.sock"
    with socket.socket(socket.AF_UNIX) as unix, tcp() as listener:
        unix.bind(str(path))
        path.chmod(0o600)
        unix.listen(8)
        daemon = Activated(tmp_path / "d")
        daemon.sockets = {"health": unix, "metrics": listener}
        with daemon:
            port = listener.getsockname()[1]
            until(lambda: get(port, "/readyz")[0] == 200)
            status = json.loads(get(port, "/status")[1])
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE_S)
                client.connect(str(path))
                client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 200")
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert not (tmp_path / "d/run/health.sock").exists()
            given = {os.readlink(f"/proc/self/fd/{each.fileno()}") for each in (unix, listener)}
            assert given <= open_sockets(daemon.process.pid)
            for child in (status["dispatcher"], *status["workers"]):
                assert not given & open_sockets(child["pid"])
            assert [note["listen"] for note in daemon.notes("dispatcher", "born")] == [""]
            daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0
        assert path.exists()


def test_what_systemd_has_kept_refuses_no_probe_over_a_restart(tmp_path):
    """The daemon has its own listeners kept. While it is away, probes wait; its next life answers them on the same
    sockets. An address that the configuration does not want any more is given up."""
    port = free_port()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(PATIENCE_S)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with Daemon(tmp_path / "d", environ, health__tcp=f"127.0.0.1:{port}") as daemon:
            kept: dict[str, socket.socket] = {}
            while len(kept) < 2:
                message, fds, _, _ = socket.recv_fds(notify, 4096, 4)
                if message.startswith(b"FDSTORE=1\nFDNAME="):
                    kept[message.split(b"=")[-1].decode()] = socket.socket(fileno=fds[0])
            daemon.ready().signal(signal.SIGTERM)
            assert daemon.wait() == 0
        assert set(kept) == {"health.kept", "metrics.kept"}
        waiting = daemon.connect()
        waiting.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        again = Activated(tmp_path / "d", environ)
        again.sockets = kept
        with again:
            assert waiting.recv(100).startswith(b"HTTP/1.1 200")
            waiting.close()
            again.ready()
            said = []
            while b"FDSTOREREMOVE=1\nFDNAME=metrics.kept" not in said:
                said.append(notify.recv(4096))
            assert not [message for message in said if b"health.kept" in message]
            kept.pop("metrics.kept").close()
            with pytest.raises(ConnectionRefusedError):
                get(port, "/livez")
            (tmp_path / "d/run/health.sock").unlink()  # now it leads nowhere: a new one is made, and kept
            until((tmp_path / "d/run/health.sock").exists)
            assert again.get("/livez")[0] == 200
            while b"FDSTORE=1\nFDNAME=health.kept" not in said:
                said.append(notify.recv(4096))
        kept.pop("health.kept").close()
