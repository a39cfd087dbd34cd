"""A whole daemon on the mistralrs engine and a directory of safetensors, with one worker on one core."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from metamusesd.client import Client
from tests.contract.tiny_model import make_tiny_model
from tests.process.daemon_rig import PATIENCE_S, Daemon, ended

CONFIG = """
[daemon]
state_dir = "{folder}/s"
models_dir = "{folder}"
backoff_s = 0.01
drain_s = 10.0
[redis]
appendfsync = "always"
[cache]
enabled = false
[queue]
lease_s = 5.0
[models.tiny]
file = "tiny"
context = 8192
[tiers.fast]
model = "tiny"
workers = 1
cores = 1
slots = 4
"""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mistralrs") is None,
    reason="mistralrs is not installed: pip install 'metamusesd[mistralrs]'",
)


class Tiny(Daemon):
    """A daemon whose model is a directory; nothing in its configuration names an engine."""

    def text(self) -> str:
        make_tiny_model(self.folder / "tiny")
        return CONFIG.format(folder=self.folder)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tiny]:
    monkeypatch.delenv("MODELS_DIR", raising=False)  # of `make`: it goes before what the configuration says
    made = Tiny()
    yield made
    made.close()


async def submit(client: Client, count: int, tokens: int) -> list[str]:
    params = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    for number in range(count):
        await client.submit({"user_query": f"Number {number % 8}.", "id": f"j{number}", "params": params})
    return [f"j{number}" for number in range(count)]


async def speaking(client: Client, id: str) -> None:
    """Until its first token was written down."""
    async with asyncio.timeout(PATIENCE_S):
        while not any(event.kind == "token" for event in await client.history(id)):
            await asyncio.sleep(0.01)


async def test_a_directory_is_served_on_its_core(daemon: Tiny) -> None:
    """Jobs are done, equal ones alike, by the engine of `auto`, whose reason is in the log; every thread of the worker
    has one core, and mistral.rs' own log is nowhere."""
    async with daemon.client() as client:
        results = await ended(client, await submit(client, 16, 20))
    assert [result.state for result in results] == ["done"] * 16
    assert [result.content for result in results[:8]] == [result.content for result in results[8:]]
    assert {result.usage.completion_tokens for result in results} == {20}
    assert all(result.model_digest.startswith("sha256:") for result in results)
    cores = {
        line
        for task in Path(f"/proc/{daemon.worker_pids()[0]}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if line.startswith("Cpus_allowed_list")
    }
    assert len(cores) == 1 and cores.pop().split()[1].isdecimal()
    log = (daemon.folder / "log").read_text()
    assert "llama.cpp reads no safetensors" in log
    assert "mistralrs_core" not in log
    assert daemon.stop() == 0


async def test_a_dead_worker_loses_no_job(daemon: Tiny) -> None:
    """SIGKILL in the middle: the next worker loads the model and does them all, and each once."""
    async with daemon.client() as client:
        jobs = await submit(client, 3, 3000)
        await speaking(client, jobs[0])
        os.kill(daemon.worker_pids()[0], signal.SIGKILL)
        results = await ended(client, jobs)
        stories = [[event.kind for event in await client.history(job)] for job in jobs]
    assert [(result.state, result.usage.completion_tokens) for result in results] == [("done", 3000)] * 3
    assert any("restarted" in story for story in stories)
