"""The semantic cache in the whole daemon: the real dispatcher asks the real vectors process, and does without it."""

from __future__ import annotations

import signal
from typing import ClassVar

import pytest

from metamusesd.client import Client
from tests.process.supervisor_rig import kill, until
from tests.process.test_vectors import MODELS, needs_parts
from tests.process.vectors_rig import ASKED, LIKE, Real

pytestmark = [pytest.mark.timeout(90), needs_parts]


class Whole(Real):
    """Nothing is a toy but the model."""

    kids: ClassVar = {}

    def client(self) -> Client:
        return Client(f"unix://{self.directory}/run/redis.sock")


async def ask(client: Client, text: str, **fields: object) -> tuple[bool, str]:
    """(from the cache, the answer)."""
    receipt = await client.submit({"user_query": text, **fields})
    result = await client.wait(receipt.id, 20.0)
    assert result.state == "done"
    return bool(result.from_cache), result.content


def linked(daemon: Whole) -> int:
    """How many pipes the vectors processes have had."""
    return sum((event["process"], event["event"]) == ("vectors", "linked") for event in daemon.events())


async def test_a_paraphrase_is_answered_from_the_cache_and_by_the_model_while_vectors_is_away(tmp_path):
    """A hit across wordings; none in another muse; with vectors stopped the job is computed; later it hits."""
    settings = {"daemon__models_dir": MODELS, "redis__url": "embedded", "daemon__hang_s": 600}
    with Whole(tmp_path / "d", **settings) as daemon:
        daemon.served()
        until(lambda: linked(daemon) == 1)
        async with daemon.client() as client:
            cached, answer = await ask(client, ASKED)
            assert not cached
            until(lambda: daemon.vectors()["entries"] == 1)
            assert await ask(client, LIKE) == (True, answer)
            assert not (await ask(client, LIKE, muse_id="another"))[0]
            pid = daemon.vectors()["pid"]
            kill(pid, signal.SIGSTOP)
            assert not (await ask(client, "what's the capital of france"))[0]
            kill(pid)
            until(lambda: linked(daemon) == 2)
            assert (await ask(client, "What is the capital of france?"))[0]
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
