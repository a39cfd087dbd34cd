"""status, doctor, jobs and drain against a whole daemon, as an operator would meet them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from metamusesd.queues.redis_door import RedisDoor
from tests.process.daemon_rig import Daemon

PATIENCE_S = 40.0


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    made.until(lambda status: status["state"] == "ready" and all(w["status"] == "ready" for w in status["workers"]))
    yield made
    made.close()


def cli(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metamusesd", *words, "--config", str(daemon.config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def told(daemon: Daemon, *words: str) -> tuple[int, Any]:
    """Exit code, and what the command says as JSON."""
    done = cli(daemon, *words, "--json")
    return done.returncode, json.loads(done.stdout)


def redis(daemon: Daemon, *words: str) -> None:
    async def ask() -> None:
        door = RedisDoor(f"unix://{daemon.folder}/s/run/redis.sock", "{x}", 5.0)
        await door.ask(*words)
        door.close()

    asyncio.run(ask())


def test_a_healthy_daemon_is_ready_and_exits_0(daemon: Daemon) -> None:
    """No complaint; doctor finds it as the configuration would make it."""
    code, status = told(daemon, "status")
    assert (code, status["health"], status["complaints"]) == (0, "ready", [])
    _, findings = told(daemon, "doctor")
    grades = {(each["topic"], each["grade"]) for each in findings}
    assert ("daemon", "ok") in grades and not {("daemon", "warn"), ("redis", "bad"), ("redis", "warn")} & grades


def test_a_full_redis_is_told_to_the_idle_operator(daemon: Daemon) -> None:
    """Nobody has submitted anything yet; status and doctor say it all the same, and that it is over afterwards."""
    redis(daemon, "CONFIG", "SET", "maxmemory", "1")
    try:
        code, status = told(daemon, "status")
        texts = [each["text"] for each in status["complaints"]]
        assert code in (1, 75) and any("MiB used of" in text or "maxmemory" in text for text in texts), texts
        code, findings = told(daemon, "doctor")
        assert code == 78 and any(each["topic"] == "redis" and each["grade"] == "bad" for each in findings)
    finally:
        redis(daemon, "CONFIG", "SET", "maxmemory", "0")
    daemon.until(lambda status: not status["reasons"])
    assert told(daemon, "status")[0] == 0


def test_drained_workers_are_told_with_their_way_back(daemon: Daemon) -> None:
    """One of two: degraded. Both: not ready, exit 75. Undrained: ready."""
    assert cli(daemon, "drain", "--wait", "--worker", "fast-0").returncode == 0
    code, status = told(daemon, "status")
    assert code == 1 and "undrain --worker fast-0" in status["complaints"][0]["remedy"]
    assert cli(daemon, "drain", "--wait").returncode == 0
    code, status = told(daemon, "status")
    assert code == 75 and status["health"] == "not ready"
    assert cli(daemon, "undrain").returncode == 0
    daemon.until(lambda status: not status["reasons"])
    assert told(daemon, "status")[0] == 0


def test_poison_leaves_complaints_until_it_is_dropped(daemon: Daemon) -> None:
    """The quarantine is told with what to do, and so are the workers that it took."""
    assert cli(daemon, "submit", "poison !crash", "--id", "poison-1").returncode == 5
    code, status = told(daemon, "status")
    remedies = " ".join(each["remedy"] for each in status["complaints"])
    assert code == 1 and "dead list" in remedies and "evidence/fast-" in remedies
    assert cli(daemon, "dead", "drop", "poison-1").returncode == 0
    _, status = told(daemon, "status")
    assert not any("quarantined" in each["text"] for each in status["complaints"])
