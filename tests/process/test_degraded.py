"""A daemon beside a Redis in trouble: it says what is wrong, keeps its models, goes on by itself, and loses nothing."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from metamusesd.client import Client
from metamusesd.errors import QueueUnavailable
from tests.process.daemon_rig import Daemon, ended, judge, running, submit_many
from tests.process.dispatcher_rig import RedisServer

TEXT = " ".join(["one two three"] * 20)
JOBS = 12

CONFIG = """
[daemon]
state_dir = "{folder}/s"
hang_s = 2.0
backoff_s = 0.01
[redis]
url = "{url}"
[cache]
enabled = false
[queue]
lease_s = 3.0
[models.echo]
engine = "echo"
context = 100000
[tiers.fast]
model = "echo"
workers = 2
cores = 1
slots = 8
"""


class Beside(Daemon):
    """A daemon on a Redis of its owner's."""

    def __init__(self, redis: RedisServer) -> None:
        self.redis = redis
        super().__init__()

    def text(self) -> str:
        return CONFIG.format(folder=self.folder, url=self.redis.url)

    def client(self) -> Client:
        return Client(self.redis.url)

    def ask(self, *words: str) -> str:
        """One command by redis-cli."""
        command = ["redis-cli", "-s", str(self.redis.socket), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout

    def says(self, words: str) -> None:
        """Until a reason of /readyz has these words in it."""
        self.until(lambda status: any(words in reason for reason in status["reasons"]))

    def is_well(self) -> None:
        self.until(lambda status: not status["reasons"])


@pytest.fixture
def daemon() -> Iterator[Beside]:
    redis = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    made = Beside(redis)
    yield made
    made.close()
    redis.stop()


async def _started(daemon: Beside, client: Client) -> list[str]:
    ids = await submit_many(client, JOBS, "one two three !tokens=60 !delay=30ms")
    await running(client, ids, JOBS)
    return ids


async def test_redis_restarted(daemon: Beside) -> None:
    """Killed and started again with its file: what ran is finished, by the same processes."""
    before = (daemon.worker_pids(), daemon.pid("dispatcher"))
    async with daemon.client() as client:
        ids = await _started(daemon, client)
        daemon.redis.kill()
        daemon.says("redis")
        daemon.redis.start()
        results = await ended(client, ids)
    await judge(daemon, results, TEXT)
    daemon.is_well()
    assert (daemon.worker_pids(), daemon.pid("dispatcher")) == before


async def test_redis_stopped(daemon: Beside) -> None:
    """SIGSTOP, so that connections stay open and nothing answers: said within seconds, and over with SIGCONT."""
    before = (daemon.worker_pids(), daemon.pid("dispatcher"))
    async with daemon.client() as client:
        ids = await _started(daemon, client)
        daemon.redis.process.send_signal(signal.SIGSTOP)
        daemon.says("redis")
        daemon.redis.process.send_signal(signal.SIGCONT)
        results = await ended(client, ids)
    await judge(daemon, results, TEXT)
    daemon.is_well()
    assert (daemon.worker_pids(), daemon.pid("dispatcher")) == before


@pytest.mark.parametrize(
    ("spoil", "words", "heal"),
    [
        (["CONFIG", "SET", "maxmemory", "1mb"], "memory", ["CONFIG", "SET", "maxmemory", "0"]),
        (["REPLICAOF", "127.0.0.1", "1"], "read-only", ["REPLICAOF", "NO", "ONE"]),
        (
            ["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"],
            "lose jobs",
            ["CONFIG", "SET", "maxmemory-policy", "noeviction"],
        ),
        (
            ["EVAL", "redis.call('RENAME', KEYS[1], 'kept') redis.call('LPUSH', KEYS[1], 'x')", "1", "{metamuse}:seq"],
            "wrong type",
            ["RENAME", "kept", "{metamuse}:seq"],
        ),
        (["ACL", "SETUSER", "default", "-evalsha", "-eval"], "", ["ACL", "SETUSER", "default", "+@all"]),
    ],
)
async def test_redis_refuses(daemon: Beside, spoil: list[str], words: str, heal: list[str]) -> None:
    """Full, read-only, evicting, spoilt, or forbidden: the daemon says so and waits; healed, it finishes every job."""
    before = (daemon.worker_pids(), daemon.pid("dispatcher"))
    async with daemon.client() as client:
        ids = await _started(daemon, client)
        daemon.ask(*spoil)
        daemon.says(words)
        daemon.ask(*heal)
        results = await ended(client, ids)
    await judge(daemon, results, TEXT)
    daemon.is_well()
    assert (daemon.worker_pids(), daemon.pid("dispatcher")) == before


async def test_scripts_flushed(daemon: Beside) -> None:
    """SCRIPT FLUSH is not even noticed."""
    async with daemon.client() as client:
        ids = await _started(daemon, client)
        daemon.ask("SCRIPT", "FLUSH")
        results = await ended(client, ids)
    await judge(daemon, results, TEXT)


async def test_everything_flushed(daemon: Beside) -> None:
    """FLUSHALL under running jobs: they are gone, and the daemon serves the next ones."""
    async with daemon.client() as client:
        await _started(daemon, client)
        daemon.ask("FLUSHALL")
        daemon.until(lambda status: not any(worker["slots_used"] for worker in status["workers"]))
        results = await ended(client, await submit_many(client, 3))
    await judge(daemon, results, TEXT)
    daemon.is_well()


async def test_a_full_disk(tmp_path: Path) -> None:
    """Redis cannot write its append-only file: submits are refused with the reason, and afterwards all goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs root: mounts a small disk")
    redis = RedisServer("--appendonly", "yes", "--appendfsync", "everysec", "--dir", str(disk))
    daemon = Beside(redis)
    try:
        async with daemon.client() as client:
            ids = await _started(daemon, client)
            (disk / "filler").write_bytes(b"x" * 600_000)
            with pytest.raises(QueueUnavailable) as refused:
                for _ in range(200):
                    await client.submit({"user_query": "x " * 10_000}, 1.0)
            assert refused.value.trouble == "disk"
            (disk / "filler").unlink()
            daemon.ask("CONFIG", "SET", "auto-aof-rewrite-percentage", "0")
            results = await asyncio.wait_for(ended(client, ids), 60)
        await judge(daemon, results, TEXT)
    finally:
        daemon.close()
        redis.stop()
        subprocess.run(["umount", str(disk)], check=True)
