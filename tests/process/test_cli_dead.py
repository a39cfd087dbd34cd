"""`metamusesd dead`, the place of a waiting job and a full queue, against a whole daemon or a real Redis."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metamusesd.queues.base import Limits
from metamusesd.queues.redis_queue import RedisQueue
from tests.contract.redis_servers import RedisServer, binary_of
from tests.process.daemon_rig import Daemon, running

PATIENCE_S = 40.0
LISTS = (["--state", "running", "--tier", "fast"], ["--list", "--count", "3"], ["--class", "critical"])


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    yield made
    made.close()


def cli(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metamusesd", *words, "--config", str(daemon.config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_the_quarantine_from_end_to_end(daemon: Daemon) -> None:
    """A poison job is listed with its reason, shown with the evidence of every crash, retried, and forgotten."""
    assert cli(daemon, "dead", "list").stdout == "no job is quarantined\n"
    poison = cli(daemon, "submit", "poison !crash", "--id", "poison-1", "--priority", "high")
    assert poison.returncode == 5 and "dead: " in poison.stderr

    listed = cli(daemon, "dead", "list").stdout
    assert "poison-1" in listed and "high" in listed and "fast" in listed
    (told,) = json.loads(cli(daemon, "dead", "list", "--json").stdout)
    assert told["crashes"] == len(told["evidence"]) == 3
    assert all("SIGABRT" in crash["how"] and crash["worker"].startswith("fast-") for crash in told["evidence"])

    shown = cli(daemon, "dead", "show", "poison-1")
    assert shown.returncode == 0
    for part in ("poison-1  dead · class high", "crash 3", "SIGABRT", "phase", "prompt: poison !crash"):
        assert part in shown.stdout, shown.stdout
    assert json.loads(cli(daemon, "dead", "show", "poison-1", "--json").stdout)["request"]["user_query"]

    assert cli(daemon, "dead", "retry", "poison-1").stdout == "poison-1  queued\n"
    assert cli(daemon, "watch", "poison-1").returncode == 5
    assert cli(daemon, "dead", "drop", "poison-1").stdout == "poison-1  dropped\n"
    assert cli(daemon, "dead", "list", "--json").stdout == "[]\n"
    gone = cli(daemon, "dead", "show", "poison-1")
    assert gone.returncode == 66 and "gone" in gone.stderr


def test_what_is_not_dead_is_left_alone(daemon: Daemon) -> None:
    """retry and drop of a job that is done: its state, and exit 65; of one that is not there: 66."""
    assert cli(daemon, "submit", "fine", "--id", "fine-1").stdout == "fine\n"
    for action in ("retry", "drop"):
        done = cli(daemon, "dead", action, "fine-1")
        assert (done.returncode, done.stdout) == (65, "fine-1  done: not in the quarantine, left as it is\n")
        assert cli(daemon, "dead", action, "nobody").returncode == 66
    assert cli(daemon, "watch", "fine-1").stdout == "fine\n"


async def test_a_waiting_job_says_its_place(daemon: Daemon) -> None:
    """All slots are taken: `submit` says on standard error where its job stands; with --json it says nothing."""
    long = {"user_query": "one two !tokens=20000 !delay=20ms"}
    async with daemon.client() as client:
        ids = [(await client.submit(long | {"id": f"w{n}"}, watch=False)).id for n in range(40)]
        await running(client, ids, 16)
        plain, silent = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "metamusesd", "submit", "at last", *more, "--config", str(daemon.config),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for more in ([], ["--json"])
        ]  # fmt: skip
        whole = json.loads((await asyncio.to_thread(cli, daemon, "jobs", "--json")).stdout)
        drawn = (await asyncio.to_thread(cli, daemon, "jobs")).stdout
        assert sum(queue["normal"] for queue in whole["queues"].values()) >= 24
        assert [[*host["tiers"]] for host in whole["hosts"]] == [["fast"]]
        assert "waiting" in drawn and "fast" in drawn and "echo" in drawn
        told = [json.loads((await asyncio.to_thread(cli, daemon, "jobs", "--json", *words)).stdout) for words in LISTS]
        assert [len(each["jobs"]) for each in told] == [16, 3, 0]
        assert all((job["queue"], job["running_ms"] >= 0) == ("fast", True) for job in told[0]["jobs"])
        assert [job["age_ms"] for job in told[1]["jobs"]] == sorted(job["age_ms"] for job in told[1]["jobs"])[::-1]
        assert told[1]["fit"] == told[1]["living"] >= 40
        assert plain.stderr is not None and silent.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            line = (await plain.stderr.readline()).decode()
            assert line.startswith("waiting ") and " ahead" in line
            await asyncio.gather(*(client.cancel(id) for id in ids))
            out, _ = await plain.communicate()
            quiet_out, quiet_err = await silent.communicate()
    assert (plain.returncode, out) == (0, b"at last\n")
    assert json.loads(quiet_out)["content"] == "at last" and quiet_err == b""


async def test_a_full_queue_says_which_bound_and_when_again(tmp_path: Path) -> None:
    """Exit 75, one line with the bound that was reached and the time after which to try again."""
    server = RedisServer(binary_of("redis7"), tmp_path).start()
    try:
        queue = RedisQueue(server.url, limits=Limits(max_jobs=1))
        await queue.open()
        await queue.configure()
        await queue.close()
        command = [sys.executable, "-m", "metamusesd", "submit", "x", "--no-wait", "--set", f"redis.url={server.url}"]
        codes = [
            (subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)) for _ in "ab"
        ]
    finally:
        server.stop()
    assert [done.returncode for done in codes] == [0, 75]
    line = r"metamusesd: queue_full: The queue is full: the bound on jobs is reached. \(try again in [0-9.]+ s\)\n"
    assert re.fullmatch(line, codes[1].stderr), codes[1].stderr
