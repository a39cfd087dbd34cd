"""The daemon on a real GPU: it serves, survives, waits for memory, and shares it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gpu.conftest import MIB, Hog, OnGpu, memory
from tests.process.daemon_rig import ended, running

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]
SLACK = 64 * MIB


@pytest.fixture
def daemon() -> Iterator[OnGpu]:
    made = OnGpu()
    yield made
    made.close()


def wanted_bytes(daemon: OnGpu) -> int:
    """What the worker said it wants of its GPU."""
    status = daemon.until(lambda status: any(worker["vram_wanted_bytes"] for worker in status["workers"]))
    return max(int(worker["vram_wanted_bytes"]) for worker in status["workers"])


def ask(number: int, tier: str = "fast", tokens: int = 24) -> dict[str, object]:
    params = {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
    return {"user_query": f"Tell me about the number {number}.", "id": f"{tier}{number}", "tier": tier,
            "params": params}  # fmt: skip


async def test_it_serves_and_shows_its_memory(daemon: OnGpu) -> None:
    """Jobs are done; the board knows how full the GPU is; the GPU holds the weights and no less."""
    async with daemon.client() as client:
        ids = [(await client.submit(ask(number))).id for number in range(16)]
        results = await ended(client, ids)
    assert {(result.state, result.usage.completion_tokens) for result in results} == {("done", 24)}
    worker = daemon.until(lambda status: status["workers"][0]["vram_used_bytes"] > 0)["workers"][0]
    assert worker["vram_total_bytes"] == memory()[0]
    assert worker["vram_used_bytes"] > 90 * MIB
    log = (daemon.folder / "log").read_text()
    assert "on its GPUs" in log and "GPU-" in log


async def test_its_reckoning_is_enough(daemon: OnGpu) -> None:
    """What it asks for before a load covers what it takes, and is not twice as much."""
    wanted = wanted_bytes(daemon)
    async with daemon.client() as client:
        await ended(client, [(await client.submit(ask(number))).id for number in range(8)])
    full = memory()[1]
    daemon.stop()
    taken = memory()[1] - full
    assert taken <= wanted <= 2 * taken, (taken // MIB, wanted // MIB)


async def test_a_killed_worker_leaves_no_memory_behind(daemon: OnGpu) -> None:
    """SIGKILL amid jobs: all are done, and the GPU is as full as before."""
    before = memory()[1]
    async with daemon.client() as client:
        ids = [(await client.submit(ask(number, tokens=400))).id for number in range(6)]
        await running(client, ids, 2)
        daemon.signal("fast-0")
        results = await ended(client, ids)
    assert {(result.state, result.usage.completion_tokens) for result in results} == {("done", 400)}
    assert abs(memory()[1] - before) < SLACK
    assert daemon.status()["workers"][0]["restarts"] == 1


def test_a_load_waits_for_the_memory_of_another(daemon: OnGpu) -> None:
    """Somebody else has filled the GPU: a worker waits, says so, and loads when there is room."""
    wanted = wanted_bytes(daemon)
    daemon.stop()
    with Hog(leave=wanted // 2) as hog:
        daemon.again()
        daemon.until(lambda status: "waiting for the GPU's memory" in daemon.tail() and bool(status))
        hog.end()
        daemon.until(lambda status: status["workers"][0]["status"] == "ready")


class Shared(OnGpu):
    """Two tiers on one GPU, both of which may sleep."""

    awake = ("ready", "asleep")
    more = "idle_unload_s = 0.5\n[tiers.medium]\nmodel = 'm'\ngpus = [0]\nslots = 4\nidle_unload_s = 600.0\n"


async def test_two_tiers_take_turns_on_one_gpu() -> None:
    """Where only one of them fits, who is wanted gets the GPU."""
    daemon = Shared()
    try:
        daemon.until(lambda status: [worker["status"] for worker in status["workers"]] == ["asleep", "ready"])
        with Hog(leave=wanted_bytes(daemon) // 2):
            async with daemon.client() as client:
                for number, tier in enumerate(("fast", "medium", "fast")):
                    result = await client.execute(ask(number, tier), 30)
                    assert (result.state, result.tier) == ("done", tier), daemon.tail()
    finally:
        daemon.close()
