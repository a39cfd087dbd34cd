"""What every vector store promises, against all of them: in memory, embedded on disk, qdrant-client's local mode, and a
Qdrant server when QDRANT_URL names one."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metamusesd.cache.base import DIMENSION, Entry, Labels, Store, entry_id
from metamusesd.cache.memory import MemoryStore
from metamusesd.cache.qdrant_embedded import EmbeddedStore
from metamusesd.cache.qdrant_server import ServerStore
from metamusesd.errors import StoreFailed

NOW_MS = 1_764_000_000_000
KINDS = ["memory", "embedded", "local", "server"]
CLOSE = 0.001  # the embedded store keeps 8 bits a number


def make(kind: str, folder: Path) -> Store:
    """A new store of a kind, not open."""
    if kind == "memory":
        return MemoryStore()
    if kind == "embedded":
        return EmbeddedStore(folder / "space")
    if kind == "local":
        from qdrant_client import AsyncQdrantClient

        return ServerStore("http://local", "", "space", client=lambda: AsyncQdrantClient(":memory:"))
    if not (url := os.environ.get("QDRANT_URL", "")).startswith("http"):
        pytest.skip("QDRANT_URL names no Qdrant server")
    return ServerStore(url, os.environ.get("QDRANT_API_KEY", ""), f"metamusesd-test-{uuid.uuid4().hex}")


async def dispose(store: Store) -> None:
    """Nothing of it stays."""
    if isinstance(store, ServerStore) and store._client is not None:
        await store._client.delete_collection(store._name)
    await store.close()


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An open, empty store of every kind in turn."""
    store = make(request.param, tmp_path)
    await store.open()
    yield store
    await dispose(store)


def vector(number: int, noise: float = 0.0) -> np.ndarray:
    """The direction of this number, a little off when there is noise."""
    random = np.random.default_rng(number)
    straight = random.standard_normal(DIMENSION)
    straight = straight / np.linalg.norm(straight) + noise * random.standard_normal(DIMENSION) / np.sqrt(DIMENSION)
    return (straight / np.linalg.norm(straight)).astype(np.float32)


def entry(query: str, partition: str = "p", **fields) -> Entry:
    """An entry that lives for a minute."""
    given = {"answer": b'{"content":"yes"}', "expires_ms": NOW_MS + 60_000, "used_ms": NOW_MS} | fields
    return Entry(id=entry_id(partition, query), partition=partition, query=query, **given)


async def queries(store: Store, near: np.ndarray, partitions=("p",), floor=-1.0, count=100, now_ms=NOW_MS) -> list[str]:
    """What a search finds, best first."""
    return [each.entry.query for each in await store.search(near, list(partitions), floor, count, now_ms)]


async def test_an_entry_comes_back_as_it_was_put(store: Store):
    """Every field survives, in a search and by id, whatever characters it has."""
    kept = entry(
        "¿Qué? 🎉 \0 日本\n", "wall/ß", answer='{"content":"„ja“ 🎉"}'.encode(), flight="f" * 32, tenant="acme é",
        muse="m", model="sha256:d", tags=("a", "ü"), created_ms=NOW_MS - 5, bar=0.25, complaints=3,
    )  # fmt: skip
    await store.put([(kept, vector(1))])
    assert await store.get(kept.id) == kept
    [found] = await store.search(vector(1), ["wall/ß"], 0.9, 5, NOW_MS)
    assert found.entry == kept
    assert found.score == pytest.approx(1.0, abs=CLOSE)


async def test_the_same_question_again_replaces_its_entry(store: Store):
    """One id, one entry: the last one, with its vector."""
    await store.put([(entry("q", answer=b'"old"'), vector(1))])
    await store.put([(entry("q", answer=b'"new"'), vector(2))])
    assert await store.count() == 1
    [found] = await store.search(vector(2), ["p"], 0.9, 5, NOW_MS)
    assert found.entry.answer == b'"new"'
    assert await queries(store, vector(1), floor=0.9) == []


async def test_nothing_to_do_is_no_error(store: Store):
    """Empty lists, no partitions, no hits wanted, unknown ids."""
    unknown = entry_id("p", "never asked")
    await store.put([])
    await store.touch([], NOW_MS)
    await store.touch([unknown], NOW_MS)
    await store.mark(unknown, bar=0.99, complaints=1)
    await store.drop([])
    await store.drop([unknown])
    await store.put([(entry("q"), vector(1))])
    assert await store.search(vector(1), [], -1, 5, NOW_MS) == []
    assert await store.search(vector(1), ["p"], -1, 0, NOW_MS) == []
    assert await store.get(unknown) is None
    assert await store.count() == 1


async def test_a_search_is_ordered_and_bounded(store: Store):
    """Best first, at most so many, none under the floor; scores are cosines."""
    turns = [vector(1, noise) for noise in (0.0, 0.2, 0.4, 0.8)]
    await store.put([(entry(f"q{n}"), turns[n]) for n in (2, 0, 3, 1)])
    await store.put([(entry("other"), -vector(1))])
    assert await queries(store, vector(1)) == ["q0", "q1", "q2", "q3", "other"]
    assert await queries(store, vector(1), count=2) == ["q0", "q1"]
    middle = float(turns[1] @ turns[0] + turns[2] @ turns[0]) / 2
    found = await store.search(vector(1), ["p"], middle, 5, NOW_MS)
    assert [each.entry.query for each in found] == ["q0", "q1"]
    assert [each.score for each in found] == pytest.approx([1.0, float(turns[1] @ turns[0])], abs=CLOSE)


async def test_only_the_partitions_asked_for_are_found(store: Store):
    """One, several, or none of them; however near another one's entry is."""
    await store.put([(entry("q", partition), vector(1)) for partition in ("a", "b", "c")])
    for asked in (["a"], ["b", "c"], ["a", "b", "c"], ["d"], ["ab"], ["A"], [""]):
        found = await store.search(vector(1), asked, -1, 10, NOW_MS)
        assert sorted(each.entry.partition for each in found) == sorted(set(asked) & {"a", "b", "c"})


async def test_an_expired_entry_is_not_found(store: Store):
    """From its millisecond on, also when expired ones are nearer and would fill the whole list; by id it is."""
    await store.put([(entry(f"gone{n}", expires_ms=NOW_MS - n), vector(1)) for n in range(5)])
    await store.put([(entry("alive", expires_ms=NOW_MS + 1), vector(1, 0.3))])
    assert await queries(store, vector(1), count=1) == ["alive"]
    assert await queries(store, vector(1), count=10) == ["alive"]
    assert await queries(store, vector(1), now_ms=NOW_MS + 1) == []
    assert await store.get(entry_id("p", "gone0")) is not None


async def test_a_mark_is_kept(store: Store):
    """It changes the bar and the complaints, and nothing else."""
    await store.put([(entry("q"), vector(1)), (entry("r"), vector(2))])
    await store.mark(entry("q").id, bar=0.97, complaints=2)
    marked = await store.get(entry("q").id)
    assert marked is not None
    assert (marked.bar, marked.complaints, marked.answer) == (0.97, 2, entry("q").answer)
    assert (await store.get(entry("r").id)) == entry("r")
    assert await queries(store, vector(1), floor=0.9) == ["q"]


async def test_drop_removes_these_and_no_others(store: Store):
    """They are neither found nor counted any more."""
    await store.put([(entry(f"q{n}"), vector(n)) for n in range(5)])
    await store.drop([entry("q0").id, entry("q3").id, entry_id("p", "never asked")])
    assert sorted(await queries(store, vector(0))) == ["q1", "q2", "q4"]
    assert await store.count() == 3
    assert await store.get(entry("q0").id) is None


LABELLED = {
    "a": {"tenant": "t1", "muse": "m1", "model": "d1", "tags": ("x", "y")},
    "b": {"tenant": "t1", "muse": "m2", "model": "d1", "tags": ("y",)},
    "c": {"tenant": "t2", "muse": "m1", "model": "d2", "tags": ()},
    "d": {"tenant": "t2", "muse": "", "model": "d1", "tags": ("x",)},
}
PURGES = [
    (Labels(), "abcd"), (Labels(tenant="t1"), "ab"), (Labels(muse="m1"), "ac"), (Labels(model="d1"), "abd"),
    (Labels(tag="x"), "ad"), (Labels(tag="y"), "ab"), (Labels(tenant="t1", tag="x"), "a"), (Labels(muse=""), "d"),
    (Labels(tenant="t2", muse="m1", model="d2"), "c"), (Labels(tenant="t1", model="d2"), ""), (Labels(tag="z"), ""),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "gone"), PURGES)
async def test_a_purge_removes_what_matches_every_label(store: Store, labels: Labels, gone: str):
    """Expired or not, in any partition; and it says how many there were."""
    await store.put([(entry(name, name, **fields), vector(1)) for name, fields in LABELLED.items()])
    await store.mark(entry("a", "a").id, bar=0.5, complaints=1)
    assert await store.purge(labels) == len(gone)
    assert sorted(await queries(store, vector(1), partitions="abcd")) == sorted(set("abcd") - set(gone))


async def test_a_sweep_removes_the_expired(store: Store):
    """Those alone while there is room."""
    await store.put([(entry(f"q{n}", expires_ms=NOW_MS - 2 + n), vector(n)) for n in range(5)])
    assert await store.sweep(NOW_MS, 100) == 3
    assert sorted(await queries(store, vector(0), now_ms=0)) == ["q3", "q4"]
    assert await store.sweep(NOW_MS, 100) == 0


async def test_a_sweep_removes_the_least_recently_used(store: Store):
    """Beyond the most; a touch counts as a use."""
    await store.put([(entry(f"q{n}", used_ms=NOW_MS + n), vector(n)) for n in range(6)])
    await store.touch([entry("q0").id, entry("q2").id, entry_id("p", "never asked")], NOW_MS + 100)
    assert await store.sweep(NOW_MS, 4) == 2
    assert sorted(await queries(store, vector(0))) == ["q0", "q2", "q4", "q5"]
    assert await store.sweep(NOW_MS, 0) == 4
    assert await store.count() == 0


async def test_a_sweep_and_a_purge_of_many(store: Store):
    """More than any batch."""
    many = [(entry(f"q{n}", expires_ms=NOW_MS + n % 2, used_ms=NOW_MS + n), vector(n)) for n in range(1200)]
    await store.put(many)
    assert await store.sweep(NOW_MS, 350) == 850
    assert await store.count() == 350
    assert await store.get(entry("q499").id) is None
    assert await store.get(entry("q501").id) is not None
    assert await store.purge(Labels(tenant="default")) == 350
    assert await store.count() == 0


async def test_many_calls_at_once(store: Store):
    """Ten of every kind overlap, and each gets its own answer."""

    async def one(n: int) -> None:
        kept = entry(f"q{n}", f"p{n}")
        await store.put([(kept, vector(n))])
        assert [each.entry.id for each in await store.search(vector(n), [f"p{n}"], 0.9, 5, NOW_MS)] == [kept.id]
        await store.touch([kept.id], NOW_MS + n)
        touched = await store.get(kept.id)
        assert touched is not None
        assert touched.used_ms == NOW_MS + n

    await asyncio.gather(*(one(n) for n in range(10)))
    assert await store.count() == 10


async def test_opening_twice_and_closing_twice_is_legal(store: Store):
    """The second time does nothing."""
    await store.put([(entry("q"), vector(1))])
    await store.open()
    assert await queries(store, vector(1)) == ["q"]
    await store.close()
    await store.close()


async def test_maintenance_and_statistics(store: Store):
    """Maintenance ends, changes nothing that is seen, and the facts say what and where."""
    await store.put([(entry("q"), vector(1))])
    for _ in range(10):
        if not await store.tend():
            break
    assert await queries(store, vector(1)) == ["q"]
    facts = store.statistics()
    assert {"kind", "where", "entries"} <= set(facts)


@pytest.mark.parametrize("kind", ["embedded", "local", "server"])
async def test_a_closed_store_fails_its_calls(kind: str, tmp_path: Path):
    """With our error, before it is opened and after it is closed."""
    store = make(kind, tmp_path)
    for _ in range(2):
        with pytest.raises(StoreFailed):
            await store.search(vector(1), ["p"], 0, 1, NOW_MS)
        with pytest.raises(StoreFailed):
            await store.put([(entry("q"), vector(1))])
        with pytest.raises(StoreFailed):
            await store.count()
        await store.open()
        await dispose(store)


@pytest.mark.parametrize("kind", ["embedded", "local", "server"])
async def test_a_text_that_no_store_can_hold_is_our_error(kind: str, tmp_path: Path):
    """Half a surrogate pair, an answer that is not UTF-8: refused, and the store goes on."""
    store = make(kind, tmp_path)
    await store.open()
    for spoilt in (
        Entry(id=entry_id("p", "x"), partition="p", query="\ud800"),
        Entry(id=entry_id("p", "x"), partition="p", query="x", answer=b"\xff"),
    ):
        with pytest.raises(StoreFailed):
            await store.put([(spoilt, vector(1))])
    await store.put([(entry("q"), vector(1))])
    assert await queries(store, vector(1), now_ms=NOW_MS) == ["q"]
    await dispose(store)


WALLS = st.sampled_from(["a", "b", "ab", "A", "a\0", "é", "e\u0301", "x" * 64])


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    kept=st.lists(st.tuples(WALLS, st.integers(0, 5), st.integers(-2, 2)), max_size=12),
    asked=st.lists(WALLS, max_size=4),
    near=st.integers(0, 5),
    count=st.integers(1, 6),
)
async def test_a_search_never_crosses_a_wall(store: Store, kept, asked, near, count):
    """Whatever was put and asked: only these partitions, only unexpired, as many as there are up to the count."""
    await store.purge(Labels())
    entries = {(wall, n): (entry(f"q{n}", wall, expires_ms=NOW_MS + lives), vector(n, 0.1)) for wall, n, lives in kept}
    await store.put(list(entries.values()))
    found = [each.entry for each in await store.search(vector(near), asked, -1.0, count, NOW_MS)]
    right = {each.id for each, _ in entries.values() if each.partition in asked and each.expires_ms > NOW_MS}
    assert {each.id for each in found} <= right
    assert len(found) == len({each.id for each in found}) == min(count, len(right))
