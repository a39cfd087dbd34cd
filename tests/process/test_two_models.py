"""Two real models of two architectures at once, each in its tier, while their processes are killed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from metamusesd.client import Client
from metamusesd.config import DEMO_MODEL
from metamusesd.job import Result
from metamusesd.models import CATALOGUE
from tests.process.daemon_rig import Daemon

MODELS = Path(os.environ.get("MODELS_DIR") or Path(__file__).parents[2] / "models")
GEMMA = CATALOGUE["gemma3-270m"][0].target
CONFIG = """
[daemon]
state_dir = "{folder}/s"
models_dir = "{models}"
backoff_s = 0.01
drain_s = 10.0
[redis]
appendfsync = "always"
[cache]
enabled = false
[queue]
lease_s = 5.0
[models.smollm2]
file = "{smollm2}"
context = 1024
[models.gemma]
file = "{gemma}"
context = 1024
[tiers.fast]
model = "smollm2"
workers = 1
cores = 1
slots = 4
[tiers.medium]
model = "gemma"
workers = 1
cores = 1
slots = 4
"""

pytestmark = [
    pytest.mark.slow_fault,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        not (MODELS / GEMMA).is_file(), reason=f"{GEMMA} is not there: run `metamusesd models fetch gemma3-270m`"
    ),
    pytest.mark.skipif(not (MODELS / DEMO_MODEL).is_file(), reason="no demo model: run `make models`"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two cores"),
]


class TwoModels(Daemon):
    """A daemon with SmolLM2 as fast and Gemma as medium."""

    def text(self) -> str:
        return CONFIG.format(folder=self.folder, models=MODELS, smollm2=DEMO_MODEL, gemma=GEMMA)


@pytest.fixture
def daemon() -> Iterator[TwoModels]:
    made = TwoModels()
    yield made
    made.close()


async def ask(client: Client, number: int, tier: str | None, tokens: int = 40) -> Result:
    body = {"user_query": f"Tell me something about the number {number}.", "id": f"{tier or 'any'}-{number}",
            "params": {"max_tokens": tokens, "ignore_eos": True, "seed": number}}  # fmt: skip
    return await client.execute(body | ({"tier": tier} if tier else {}), 120)


async def test_each_tier_has_its_model(daemon: TwoModels) -> None:
    """Forced jobs are served by their tier's model, whatever the other one is doing."""
    async with daemon.client() as client:
        jobs = [ask(client, number, tier) for number in range(6) for tier in ("fast", "medium")]
        results = await asyncio.gather(*jobs)
    for result in results:
        tier = result.request_id.partition("-")[0]
        assert (result.state, result.tier) == ("done", tier)
        # Gemma is a base model without a template: it may write the end of a turn, which is a stop string.
        assert result.usage.completion_tokens == 40 or (tier == "medium" and result.finish_reason == "stop")
        assert result.model_name == {"fast": "smollm2", "medium": "gemma"}[tier]
    digests = {result.tier: result.model_digest for result in results}
    assert digests["medium"] == CATALOGUE["gemma3-270m"][0].digest and len(set(digests.values())) == 2
    assert daemon.stop() == 0


@pytest.mark.parametrize("victim", ["fast-0", "medium-0", "dispatcher", "redis"])
async def test_a_death_in_the_middle_loses_no_job(daemon: TwoModels, victim: str) -> None:
    """SIGKILL while both tiers are full: every job is done, once, by a tier that it accepts."""
    async with daemon.client() as client:
        forced = [asyncio.create_task(ask(client, number, tier)) for number in range(4) for tier in ("fast", "medium")]
        free = [asyncio.create_task(ask(client, number, None)) for number in range(10, 16)]
        await asyncio.to_thread(daemon.until, lambda status: all(w["slots_used"] for w in status["workers"]))
        os.kill(daemon.pid(victim), signal.SIGKILL)
        results = await asyncio.gather(*forced, *free)
    assert [result.state for result in results] == ["done"] * 14
    for result in results[:8]:
        assert result.tier == result.request_id.partition("-")[0]
    assert all(result.route is not None and result.tier in result.route.tiers for result in results[8:])


async def test_a_crowd_at_the_fast_tier_is_helped_by_the_medium_one(daemon: TwoModels) -> None:
    """More simple jobs than fast has slots for: some are served a tier up, and their record says why."""
    async with daemon.client() as client:
        bodies = [{"user_query": f"Say hello to guest number {number}", "id": f"guest-{number}",
                   "params": {"max_tokens": 30, "ignore_eos": True}} for number in range(20)]  # fmt: skip
        results = await asyncio.gather(*(client.execute(body, 120) for body in bodies))
    lent = [result for result in results if result.tier == "medium" and result.route is not None]
    assert [result.state for result in results] == ["done"] * 20
    assert lent and all(result.route and result.route.requested_tier == "fast" for result in results)
    assert any("would be sooner" in result.route.reason for result in lent if result.route)
