"""Flights and caches in a whole daemon, while its processes are killed and the store's files vanish."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from metamusesd.client import Client
from metamusesd.job import Result
from tests.process.supervisor_rig import kill, until
from tests.process.test_vectors import MODELS, needs_parts
from tests.process.test_vectors_whole import Whole, ask, linked

pytestmark = [pytest.mark.timeout(120), needs_parts]

LONG = "the muses sing of arms and the man !tokens=120 !delay=40ms"
EQUAL = 20


def words(count: int) -> str:
    said = LONG.split(" !")[0].split()
    return " ".join(said[place % len(said)] for place in range(count))


async def submit(client: Client, **fields: Any) -> list[str]:
    receipts = [await client.submit({"user_query": LONG, **fields}) for _ in range(EQUAL)]
    return [receipt.id for receipt in receipts]


async def under_way(client: Client, ids: list[str]) -> str:
    """Until one of them leads, and has text, and the others follow; the leader."""
    while True:
        states = {id: (await client.status(id)).state for id in ids}
        if sorted(states.values()) == ["following"] * (EQUAL - 1) + ["running"]:
            break
        await asyncio.sleep(0.02)
    leader = next(id for id, state in states.items() if state == "running")
    async for event in client.stream(leader):
        if event.kind == "token":
            break
    return leader


async def results(client: Client, ids: list[str]) -> list[Result]:
    return list(await asyncio.gather(*(client.wait(id, 60.0) for id in ids)))


@pytest.mark.parametrize("victim", ["worker", "dispatcher", "vectors", "redis"])
async def test_a_flight_outlives_every_process(tmp_path: Path, victim: str) -> None:
    """Twenty equal jobs, one run; SIGKILL in its middle: twenty results, each once, nineteen of them shared."""
    settings = {"daemon__models_dir": MODELS, "redis__url": "embedded", "redis__appendfsync": "always"}
    with Whole(tmp_path / "d", **settings) as daemon:
        daemon.served()
        until(lambda: linked(daemon) == 1)
        async with daemon.client() as client, asyncio.timeout(90):
            ids = await submit(client)
            await under_way(client, ids)
            status = daemon.status()
            pids = {"worker": status["workers"][0]["pid"], "dispatcher": status["dispatcher"]["pid"],
                    "vectors": status["vectors"]["pid"], "redis": status["redis"]["pid"]}  # fmt: skip
            kill(pids[victim])
            ended = await results(client, ids)
            assert {(result.state, result.content) for result in ended} == {("done", words(120))}
            assert sum(result.from_cache for result in ended) == EQUAL - 1
            for id in ids:
                kinds = [event.kind async for event in client.stream(id)]
                assert kinds.count("done") == 1 and kinds[-1] == "done"
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


async def test_a_cancelled_leader_hands_over(tmp_path: Path) -> None:
    """One user gives up; the nineteen others get their answer."""
    with Whole(tmp_path / "d", daemon__models_dir=MODELS, redis__url="embedded") as daemon:
        daemon.served()
        async with daemon.client() as client, asyncio.timeout(60):
            ids = await submit(client)
            leader = await under_way(client, ids)
            assert await client.cancel(leader) == "cancelled"
            ended = await results(client, [id for id in ids if id != leader])
            assert {(result.state, result.content) for result in ended} == {("done", words(120))}
            assert sum(result.from_cache for result in ended) == EQUAL - 2


async def test_equal_poison_dies_as_one(tmp_path: Path) -> None:
    """Twenty equal jobs that crash their worker: it dies three times, not sixty, and all are quarantined."""
    settings = {"daemon__models_dir": MODELS, "redis__url": "embedded", "cache__semantic": "false"}
    with Whole(tmp_path / "d", **settings) as daemon:
        daemon.ready()
        async with daemon.client() as client, asyncio.timeout(60):
            # Together: who comes when the others are buried crashes its worker anew.
            poison = {"user_query": "a b c !crash=step2 !prefill=300ms"}
            receipts = await asyncio.gather(*(client.submit(poison) for _ in range(EQUAL)))
            for receipt in receipts:
                async for event in client.stream(receipt.id):
                    last = event.kind
                assert last == "dead"
            quarantined = await client.dead()
            assert len(quarantined) == EQUAL and all(view.evidence for view in quarantined)
        assert daemon.status()["workers"][0]["restarts"] <= 4


async def test_the_stores_directory_vanishes(tmp_path: Path) -> None:
    """Deleted under the running daemon: misses or true hits, never a wrong answer; it goes on, and learns again."""
    settings = {"daemon__models_dir": MODELS, "redis__url": "embedded"}
    with Whole(tmp_path / "d", **settings) as daemon:
        daemon.served()
        until(lambda: linked(daemon) == 1)
        async with daemon.client() as client, asyncio.timeout(90):
            _, first = await ask(client, "What is the capital of France?")
            until(lambda: daemon.vectors()["entries"] == 1)
            shutil.rmtree(tmp_path / "d" / "vectors")
            cached, answer = await ask(client, "what is the capital of france")
            assert answer == (first if cached else "what is the capital of france")
            assert await ask(client, "Who was Ada?") == (False, "Who was Ada?")
            kill(daemon.vectors()["pid"])
            until(lambda: linked(daemon) == 2)
            _, again = await ask(client, "What is the capital of Spain?")
            until(lambda: daemon.vectors()["entries"] >= 1)
            assert await ask(client, "what is the capital of spain") == (True, again)
