"""Two tiers on one GPU that carries one of them: a played driver tells how full it is, the rest is real."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from metamusesd.config import DEMO_MODEL
from tests.process.daemon_rig import Daemon
from tests.process.test_reload import order

MODELS = Path(os.environ.get("MODELS_DIR") or Path(__file__).parents[2] / "models")
CONFIG = """
[daemon]
state_dir = "{folder}/s"
models_dir = "{models}"
backoff_s = 0.05
[cache]
enabled = false
[models.m]
file = "{file}"
context = 256
kv_cells = 256
[tiers.fast]
model = "m"
gpus = [0]
slots = 2
idle_unload_s = 0.3
[tiers.medium]
model = "m"
gpus = [0]
slots = 2
idle_unload_s = 600.0
"""

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not (MODELS / DEMO_MODEL).is_file(), reason="no demo model: run `make models`"),
]


class Shared(Daemon):
    """`fast` sleeps soon; `medium` only to make room."""

    awake = ("ready", "asleep", "starting", "backoff")

    def text(self) -> str:
        (self.folder / "driver").mkdir()
        return CONFIG.format(folder=self.folder, models=MODELS, file=DEMO_MODEL)

    def command(self) -> list[str]:
        place = Path(__file__).parent / "played_driver"
        return ["env", f"PYTHONPATH={place}", f"PLAYED_DRIVER={self.folder / 'driver'}", *super().command()]


@pytest.fixture
def daemon() -> Iterator[Shared]:
    made = Shared()
    yield made
    made.close()


async def test_who_is_wanted_gets_it(daemon: Shared) -> None:
    """In turns, each job at its first attempt; who waits says for what."""
    async with daemon.client() as client:
        for number, tier in enumerate(("fast", "medium", "fast", "medium")):
            ask = {"user_query": f"Hello {number}.", "tier": tier, "params": {"max_tokens": 4}}
            result = await client.execute(ask, 30)
            assert (result.state, result.tier) == ("done", tier), daemon.tail()


async def test_a_reload_leaves_who_has_no_room_asleep(daemon: Shared) -> None:
    """What differs is a model of a tier that sleeps, and its GPU is full with another one's: that is no reason to go
    back. It comes, as the new configuration has it, when it is wanted."""
    async with daemon.client() as client:
        assert (await client.execute({"user_query": "Hello.", "tier": "medium", "params": {"max_tokens": 4}}, 30)).tier
        daemon.until(lambda status: [worker["status"] for worker in status["workers"]] == ["asleep", "ready"])
        holder = daemon.pid("medium-0")
        text = daemon.config.read_text()
        daemon.config.write_text(text.replace("slots = 2\nidle_unload_s = 0.3", "slots = 3\nidle_unload_s = 0.3"))
        code, said = await order(daemon, "reload")
        assert (code, said.splitlines()[-1]) == (0, "reloaded"), said
        assert [worker["status"] for worker in daemon.status()["workers"]] == ["asleep", "ready"]
        assert daemon.pid("medium-0") == holder
        result = await client.execute({"user_query": "And now?", "tier": "fast", "params": {"max_tokens": 4}}, 30)
    assert (result.state, result.tier, result.attempt) == ("done", "fast", 1), daemon.tail()
    assert [worker["slots"] for worker in daemon.status()["workers"] if worker["name"] == "fast-0"] == [3]
