"""The Node producer of examples/node-producer against a whole daemon: it knows only docs/redis-protocol.md."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metamusesd.queues.redis_queue import RedisQueue
from tests.process.daemon_rig import Daemon, judge, running

ROOT = Path(__file__).parents[2]
LUA = ROOT / "metamusesd" / "queues" / "lua"
INSTALL_S = 40.0
PATIENCE_S = 40.0
JOBS = 20
TEXT = " ".join(["one two three"] * 20)

# Follows many jobs at once through the library and prints one line of JSON for each, with what a reader sees.
MANY = """
import { ENDED, Producer } from './client.mjs'
const producer = await new Producer({ socket: process.env.SOCKET }).open()
async function one (id) {
  const seen = { id, text: '', ends: 0, restarts: 0, gaps: 0 }
  await producer.submit({ id, user_query: 'one two three !tokens=60 !delay=20ms' })
  for await (const event of producer.follow(id)) {
    if (event.kind === 'restarted') { seen.text = ''; seen.restarts++ }
    if (event.kind === 'token') { if (event.offset !== seen.text.length) seen.gaps++; seen.text += event.text }
    if (ENDED.has(event.kind)) { seen.ends++; seen.state = event.kind; seen.content = event.result.content }
  }
  console.log(JSON.stringify(seen))
}
await Promise.all(Array.from({ length: Number(process.argv[2]) }, (_, n) => one(`n${n}`)))
await producer.close()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its modules, as `npm ci` brings them."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not on PATH")
    copy = tmp_path_factory.mktemp("node") / "producer"
    shutil.copytree(ROOT / "examples" / "node-producer", copy, ignore=shutil.ignore_patterns("node_modules"))
    (copy / "many.mjs").write_text(MANY)
    command = ["npm", "ci", "--prefer-offline", "--no-audit", "--no-fund"]
    try:
        subprocess.run(command, cwd=copy, capture_output=True, timeout=INSTALL_S, check=True)
    except subprocess.SubprocessError as error:
        pytest.skip(f"npm ci brings no modules here: {type(error).__name__}")
    return copy


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    yield made
    made.close()


def environ(daemon: Daemon) -> dict[str, str]:
    return os.environ | {"SOCKET": str(daemon.folder / "s/run/redis.sock"), "LUA": str(LUA)}


async def start(daemon: Daemon, folder: Path, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        "node", *words, cwd=folder, env=environ(daemon), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


async def outcome(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    """Exit code, standard output, standard error."""
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def node(daemon: Daemon, folder: Path, *words: str) -> tuple[int | None, str, str]:
    return await outcome(await start(daemon, folder, "producer.mjs", *words))


async def test_submit_and_stream(daemon: Daemon, folder: Path) -> None:
    """A prompt goes in, its whole answer comes out, also when it is followed again; the same id is one job."""
    text = "héllo 😀 wörld, one two"
    words = ("submit", text, "--id", "s1", "--priority", "high", "--tenant", "acme")
    assert await node(daemon, folder, *words) == (0, f"{text}\n", "job s1\n")
    assert await node(daemon, folder, *words) == (0, f"{text}\n", "job s1\n")
    assert (await node(daemon, folder, "watch", "s1"))[:2] == (0, f"{text}\n")
    async with daemon.client() as client:
        assert (await client.status("s1")).priority == 2 and (await client.wait("s1")).content == text


async def test_cancel_by_command_and_by_interrupt(daemon: Daemon, folder: Path) -> None:
    """`cancel ID` and Ctrl-C both end the job as cancelled, and whoever follows it is told."""
    long = ("producer.mjs", "submit", "one two !tokens=50000 !delay=20ms", "--id")
    first, second = await start(daemon, folder, *long, "c1"), await start(daemon, folder, *long, "c2")
    async with daemon.client() as client:
        for id, process in (("c1", first), ("c2", second)):
            assert process.stdout is not None
            assert await process.stdout.read(3) == b"one"
            assert (await client.status(id)).state == "running"
        assert await node(daemon, folder, "cancel", "c1", "nobody") == (66, "c1  cancelled\nnobody  gone\n", "")
        second.send_signal(signal.SIGINT)
        assert (await outcome(first))[0] == 3 and (await outcome(second))[0] == 130
        assert [(await client.wait(id)).state for id in ("c1", "c2")] == ["cancelled"] * 2


async def test_what_redis_lost_is_submitted_again(daemon: Daemon, folder: Path) -> None:
    """The keys of a running job vanish, as if Redis had crashed: the reader begins again, and gets it whole."""
    query = "one two three !tokens=60 !delay=10ms"
    process = await start(daemon, folder, "producer.mjs", "submit", query, "--id", "l1")
    assert process.stdout is not None and await process.stdout.read(3) == b"one"
    queue = RedisQueue(f"unix://{daemon.folder}/s/run/redis.sock")
    await queue.open()
    await queue._door.ask("DEL", *(f"{queue.prefix}:{kind}:l1" for kind in ("job", "events", "result")))
    for key in ("leases", "live"):
        await queue._door.ask("ZREM", f"{queue.prefix}:{key}", "l1")
    await queue.close()
    code, out, err = await outcome(process)
    assert code == 0 and out.endswith(f"\n{TEXT}\n") and "restarted (attempt 1: lost)" in err


async def test_refusals_have_exit_codes(daemon: Daemon, folder: Path) -> None:
    """A name that is none, another body under a known id, a tier that is not there, a job that is not there."""
    assert await node(daemon, folder, "submit", "x", "--id", "r1", "--no-wait") == (0, "r1\n", "")
    for code, words, part in (
        (65, ("submit", "x", "--id", "a b"), "id; not a name"),
        (65, ("submit", "y", "--id", "r1"), "another request: job r1"),
        (1, ("submit", "x", "--tier", "heavy"), "failed: unknown_tier: "),
        (66, ("watch", "nobody"), "not in the queue"),
        (66, ("position", "nobody"), "gone"),
        (2, ("fly", "away"), "node producer.mjs submit"),
    ):
        got = await node(daemon, folder, *words)
        assert got[0] == code and part in got[2], got


async def test_the_program_of_the_page(daemon: Daemon, folder: Path) -> None:
    """The Node program of docs/redis-protocol.md runs as it stands there."""
    page = (ROOT / "docs" / "redis-protocol.md").read_text("utf-8")
    (program,) = re.findall(r"^```js\n(.*?)^```", page, re.M | re.S)
    (folder / "hello.mjs").write_text(program)
    code, out, err = await outcome(await start(daemon, folder, "hello.mjs"))
    assert code == 0 and "Say hello." in out and "state: 'done'" in out, err


def test_the_lock_names_no_address() -> None:
    """Whoever installs it uses the registry of his own configuration."""
    lock = (ROOT / "examples" / "node-producer" / "package-lock.json").read_text()
    assert "://" not in lock and '"resolved"' not in lock and '"integrity"' in lock


@pytest.mark.slow_fault
@pytest.mark.timeout(120)
async def test_twenty_jobs_while_everything_is_killed(folder: Path) -> None:
    """A worker, the dispatcher and Redis are killed under twenty jobs: each has one whole result, none a gap."""
    daemon = Daemon()
    try:
        process = await start(daemon, folder, "many.mjs", str(JOBS))
        async with daemon.client() as client:
            ids = [f"n{n}" for n in range(JOBS)]
            await submitted(daemon)
            for name in ("fast-0", "dispatcher", "redis"):
                await running(client, ids, 4)
                daemon.signal(name)
                await asyncio.to_thread(daemon.until, all_ready)
            code, out, err = await outcome(process)
            assert code == 0, err
            told = [json.loads(line) for line in out.splitlines()]
            for seen in told:
                assert (seen["state"], seen["ends"], seen["gaps"]) == ("done", 1, 0), seen
                assert seen["text"] == seen["content"] == TEXT, seen
            results = [await client.wait(id) for id in ids]
            assert len(told) == JOBS and any(result.attempt > 1 for result in results)
        await judge(daemon, results, TEXT)
    finally:
        daemon.close()


async def submitted(daemon: Daemon) -> None:
    """Until all jobs are in the queue."""
    async with daemon.client() as client, asyncio.timeout(PATIENCE_S):
        for n in range(JOBS):
            while await client._queue.view(f"n{n}") is None:
                await asyncio.sleep(0.01)


def all_ready(status: dict[str, Any]) -> bool:
    return status["state"] == "ready" and all(worker["status"] == "ready" for worker in status["workers"])
