"""The supervisor under many deaths: nothing leaks, nothing drifts."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest
import redis

from metamusesd.control import EXIT_BOOT
from tests.process.supervisor_rig import ROOT, Daemon, kill, until

pytestmark = pytest.mark.timeout(120)


def test_descriptors_and_children_are_back_at_the_baseline_after_many_deaths(tmp_path):
    """Forty kills of workers and dispatchers later: as many descriptors and children as before, epochs only grown."""
    with Daemon(tmp_path / "d", daemon__restart_limit=1000, daemon__backoff_most_s=0.1) as daemon:
        before = _belongings(daemon.ready().process.pid)
        for round_number in range(40):
            name = ("fast-0", "dispatcher", "fast-1")[round_number % 3]
            pid = until(lambda name=name: daemon.children().get(name))
            kill(pid)
            until(lambda name=name, pid=pid: daemon.children().get(name, pid) != pid)
        daemon.ready()
        assert _belongings(daemon.process.pid) == before
        epochs = [note["epoch"] for note in daemon.notes("dispatcher", "link")]
        assert epochs == sorted(set(epochs))


def test_twenty_kills_of_redis_and_of_the_dispatcher_do_not_end_the_daemon(tmp_path):
    """An operator's kills spend no budget, with the smallest one: everybody is back each time, and so is the data."""
    with Daemon(tmp_path / "d", redis__url="embedded", daemon__restart_limit=1, daemon__backoff_s=0) as daemon:
        workers = {name: pid for name, pid in daemon.ready().children().items() if name.startswith("fast")}
        for round_number in range(40):
            name = ("redis", "dispatcher")[round_number % 2]
            pid = daemon.children()[name]
            kill(pid)
            until(lambda name=name, pid=pid: daemon.children().get(name, pid) != pid)
            daemon.ready()
        assert {name: pid for name, pid in daemon.children().items() if name in workers} == workers


def test_a_daemon_outlives_a_full_disk(full_disk):
    """The embedded Redis dies of it and cannot even start: all others stay, and say why; with room again it is back."""
    limits = {"daemon__restart_limit": 1, "daemon__backoff_s": 0.05, "daemon__backoff_most_s": 0.2}
    with Daemon(full_disk / "d", redis__url="embedded", redis__appendfsync="always", **limits) as daemon:
        before = daemon.ready().children()
        with redis.Redis(unix_socket_path=str(full_disk / "d/run/redis.sock")) as asking:
            asking.set("key", "value")
            _fill(full_disk)
            with contextlib.suppress(redis.RedisError):
                for number in range(1000):
                    asking.set(f"large-{number}", "x" * 100_000)
        until(lambda: daemon.status()["redis"]["generation"] > 5)
        assert {**daemon.children(), "redis": 0} == {**before, "redis": 0}
        assert daemon.get("/readyz")[0] == 503
        until(lambda: any("no space is left" in reason for reason in daemon.status()["reasons"]))
        (full_disk / "filler").unlink()
        daemon.ready()
        with redis.Redis(unix_socket_path=str(full_disk / "d/run/redis.sock")) as asking:
            assert asking.get("key") == b"value"


def test_a_full_disk_at_the_start_is_a_failed_start(full_disk):
    """Exit 70 and one line that says why; no traceback."""
    _fill(full_disk)
    daemon = Daemon(full_disk / "d", redis__url="embedded")
    with daemon:
        daemon.wait()
    log = full_disk.parent / "log"
    with log.open("wb") as said:
        code = subprocess.run(daemon.process.args, env=daemon.environ, cwd=ROOT, stderr=said, check=False).returncode
    (line,) = log.read_text().splitlines()
    assert (code, json.loads(line)["event"]) == (EXIT_BOOT, "the daemon cannot start")


@pytest.fixture
def full_disk(tmp_path):
    """A file system of its own that a test can fill."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(tmp_path)], check=False)
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def _fill(directory: Path) -> None:
    with contextlib.suppress(OSError), (directory / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass


def _belongings(pid: int) -> tuple[int, int]:
    """(open descriptors, children)."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return len(os.listdir(f"/proc/{pid}/fd")), len(file.read().split())
