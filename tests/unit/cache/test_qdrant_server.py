"""The store on a server: what is refused, and that a server that is away or slow costs a bounded time and no secret."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from qdrant_client import AsyncQdrantClient, models

from metamusesd.cache.base import DIMENSION
from metamusesd.cache.qdrant_server import ServerStore
from metamusesd.errors import StoreFailed, StoreRefused
from tests.contract.test_vector_store import NOW_MS, entry, queries, vector

KEY = "sesame-open-up"


class Shared(AsyncQdrantClient):
    """A local client that several stores share: closing one closes nothing."""

    async def close(self, *_given, **_more) -> None:
        pass


@pytest.fixture
async def server() -> AsyncIterator[Shared]:
    """Where everybody's collections are."""
    client = Shared(":memory:")
    yield client
    await AsyncQdrantClient.close(client)


def store_on(client: AsyncQdrantClient, name: str = "space") -> ServerStore:
    return ServerStore("http://local", KEY, name, client=lambda: client)


async def test_hosts_share_a_collection(server: Shared):
    """What one puts another one finds; a collection of another name is another space."""
    one, two, other = store_on(server), store_on(server), store_on(server, "other")
    for each in (one, two, other):
        await each.open()
    await one.put([(entry("q"), vector(1))])
    assert await queries(two, vector(1)) == ["q"]
    assert await other.count() == 0


async def test_hosts_may_create_it_at_the_same_time(server: Shared, monkeypatch: pytest.MonkeyPatch):
    """Whoever comes second takes what is there."""
    asked = []
    exists = server.collection_exists

    async def not_yet(name: str) -> bool:
        asked.append(name)
        return len(asked) > 1 and await exists(name)

    await store_on(server).open()
    monkeypatch.setattr(server, "collection_exists", not_yet)
    second = store_on(server)
    await second.open()
    assert len(asked) == 2
    assert await second.count() == 0


@pytest.mark.parametrize(
    "params",
    [
        models.VectorParams(size=8, distance=models.Distance.COSINE),
        models.VectorParams(size=DIMENSION, distance=models.Distance.DOT),
        {"named": models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)},
    ],
)
async def test_another_collection_is_refused(server: Shared, params):
    """Of another dimension, distance or form."""
    await server.create_collection("space", vectors_config=params)
    with pytest.raises(StoreRefused, match=r"space.*cache\.collection"):
        await store_on(server).open()


async def test_points_of_another_format_are_refused(server: Shared):
    """Somebody else's, or a later version's."""
    await store_on(server).open()
    await server.upsert("space", [models.PointStruct(id=1, vector=vector(1).tolist(), payload={"format": 2})])
    with pytest.raises(StoreRefused, match="another format"):
        await store_on(server).open()


async def test_what_the_client_raises_becomes_ours_without_the_key(server: Shared, monkeypatch: pytest.MonkeyPatch):
    """And the key is in no message and in no fact."""
    store = store_on(server)
    await store.open()

    async def fails(*_given, **_more):
        raise ValueError(f"401 for {KEY}")

    monkeypatch.setattr(server, "query_points", fails)
    with pytest.raises(StoreFailed, match="401 for …"):
        await queries(store, vector(1))
    assert KEY not in str(store.statistics())
    assert store.statistics()["failed"] == 1


@contextlib.asynccontextmanager
async def listener(answer) -> AsyncIterator[int]:
    """A TCP server on a free port."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_a_server_that_is_away_is_a_failure():
    """At once, and again with the next call."""

    async def nobody(_reader, writer) -> None:
        writer.close()

    async with listener(nobody) as port:
        pass
    store = ServerStore(f"http://user:pass@127.0.0.1:{port}", KEY, "space", timeout_s=5)
    for _ in range(2):
        with pytest.raises(StoreFailed, match="Qdrant server") as failure:
            await store.open()
        assert KEY not in str(failure.value)
        assert "pass" not in str(failure.value)
    await store.close()


async def test_a_server_that_never_answers_is_a_failure_in_time():
    """The deadline is ours, whatever the client thinks of it."""
    parted = asyncio.Event()

    async def silent(_reader, writer) -> None:
        await parted.wait()
        writer.close()

    async with listener(silent) as port:
        store = ServerStore(f"http://127.0.0.1:{port}", KEY, "space", timeout_s=0.3)
        with pytest.raises(StoreFailed, match=r"within 0\.3 s|failed"):
            async with asyncio.timeout(5):
                await store.open()
        await store.close()
        parted.set()


def test_the_key_is_in_no_repr(tmp_path: Path):
    """A store in a log line gives nothing away."""
    assert KEY not in repr(ServerStore("http://local", KEY, str(tmp_path)))
    assert NOW_MS > 0
