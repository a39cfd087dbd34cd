"""Embed jobs through the whole daemon: the real embedder's vectors, refusals by name, the process killed under them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from metamusesd.cache.embedder import FastEmbedder
from metamusesd.client import Client
from metamusesd.errors import InvalidRequest, JobFailed
from tests.process.supervisor_rig import kill, until
from tests.process.test_vectors import MODELS, needs_parts
from tests.process.test_vectors_whole import Whole, linked

pytestmark = [pytest.mark.timeout(90), needs_parts]
TEXTS = ["a short text", "ein kurzer Text", "a rose 🌹 is a rose"]


@pytest.fixture
def daemon(tmp_path) -> Iterator[Whole]:
    with Whole(tmp_path / "d", daemon__models_dir=MODELS, redis__url="embedded") as made:
        made.served()
        until(lambda: linked(made) == 1)
        yield made


async def test_vectors_of_the_real_embedder(daemon: Whole) -> None:
    """The numbers that the embedder itself gives, of length 1, in the texts' order; the result names the embedder."""
    embedder = FastEmbedder(Path(MODELS) / "all-MiniLM-L6-v2")
    async with daemon.client() as client:
        result = await client.execute({"kind": "embed", "input": TEXTS}, 30)
        assert await client.embed(TEXTS[:1], 30) == result.embeddings[:1]
    assert (result.model_digest, result.model_name, result.worker) == (embedder.identity, "all-MiniLM-L6-v2", "vectors")
    assert result.embeddings is not None and result.cut == []
    for ours, theirs in zip(result.embeddings, embedder.embed(TEXTS), strict=True):
        assert len(ours) == 384 and sum(each * each for each in ours) == pytest.approx(1.0, abs=1e-5)
        assert ours == pytest.approx([float(each) for each in theirs], abs=1e-6)


async def test_a_text_that_is_too_long(daemon: Whole) -> None:
    """Refused with its index; embedded to the end of the window if the caller says so, and told."""
    long = "word " * 500
    async with daemon.client() as client:
        with pytest.raises(JobFailed) as failed:
            await client.embed(["short", long], 30)
        assert (failed.value.error["field"], failed.value.error["code"]) == ("input[1]", "context_overflow")
        result = await client.execute({"kind": "embed", "input": ["short", long], "truncate": "oldest"}, 30)
        assert result.cut == [1] and len(result.embeddings or ()) == 2
        for body, field in (({"input": ["x"]}, "input"), ({"kind": "embed"}, "input"),
                            ({"kind": "embed", "input": ["x"], "tier": "fast"}, "tier"),
                            ({"kind": "embed", "input": ["x", " "]}, "input[1]")):  # fmt: skip
            with pytest.raises(InvalidRequest) as wrong:
                await client.submit(body)
            assert wrong.value.field == field


async def test_the_process_dies_under_embed_jobs(daemon: Whole) -> None:
    """They run again with the next one, unburnt; generation goes on beside them."""
    async with daemon.client() as client:
        jobs = [asyncio.create_task(many(client, n)) for n in range(20)]
        until(lambda: daemon.vectors()["pid"])
        await asyncio.sleep(0)
        kill(daemon.vectors()["pid"])
        text = await client.execute({"user_query": "hello"}, 30)
        results = await asyncio.gather(*jobs)
    assert text.state == "done"
    assert {result.state for result in results} == {"done"} and {result.attempt for result in results} == {1}
    assert all(len(result.embeddings or ()) == 32 for result in results)


async def many(client: Client, n: int):
    return await client.execute({"kind": "embed", "input": [f"text {n} {m}" for m in range(32)]}, 60)


async def test_without_an_embedder(tmp_path) -> None:
    """The job fails and says which option is off."""
    with Whole(tmp_path / "d", daemon__models_dir=MODELS, redis__url="embedded", cache__semantic="false") as daemon:
        daemon.ready()
        async with daemon.client() as client:
            with pytest.raises(JobFailed) as failed:
                await client.embed(["x"], 30)
    assert failed.value.error["code"] == "embedder_failed" and "cache.semantic" in failed.value.error["message"]
