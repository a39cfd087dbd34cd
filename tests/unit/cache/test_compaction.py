"""Compaction of the embedded store: it loses nothing, whatever happens between two of its slices."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from metamusesd.cache import compaction, edge
from metamusesd.cache.base import Entry, Labels, Store
from metamusesd.cache.compaction import LEAST_DEAD, is_due
from metamusesd.cache.home import Home
from metamusesd.cache.memory import MemoryStore
from metamusesd.cache.qdrant_embedded import EmbeddedStore
from metamusesd.errors import StoreFailed
from tests.contract.test_vector_store import NOW_MS, entry, vector

COUNT = 60


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Due early, and one slice of seven entries a turn."""
    monkeypatch.setattr(compaction, "LEAST_DEAD", 10)
    monkeypatch.setattr(compaction, "SLICE", 7)
    monkeypatch.setattr("metamusesd.cache.qdrant_embedded.TEND_S", 0.0)


async def due(directory: Path) -> EmbeddedStore:
    """COUNT living entries, and more dead ones."""
    store = EmbeddedStore(directory)
    await store.open()
    await store.put([(entry(f"dead{n}"), vector(n)) for n in range(COUNT + 1)])
    await store.put([(entry(f"q{n}", used_ms=NOW_MS + n), vector(n)) for n in range(COUNT)])
    await store.drop([entry(f"dead{n}").id for n in range(COUNT + 1)])
    return store


async def contents(store: Store) -> dict[str, Entry]:
    found = await store.search(vector(1), ["p"], -1.0, 1000, NOW_MS)
    return {each.entry.id: each.entry for each in found}


def copy_of(directory: Path, copy: Path) -> None:
    """With holes where it has holes."""
    subprocess.run(["cp", "-r", "--sparse=always", str(directory), str(copy)], check=True)


def shards(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("shard-*"))


def test_it_is_due_when_the_dead_outnumber_the_living():
    """And never for a handful."""
    few, many = compaction.LEAST_DEAD - 1, compaction.LEAST_DEAD
    assert [is_due(few, 0), is_due(many, 0), is_due(many, many), is_due(many, many + 1)] == [False, True, True, False]
    assert many < LEAST_DEAD


async def test_it_keeps_every_living_entry(tmp_path: Path):
    """In a fresh shard, found as before, and after reopening, too; the old one is gone."""
    store = await due(tmp_path / "s")
    before = await contents(store)
    scores = {each.entry.id: each.score for each in await store.search(vector(1), ["p"], -1, 1000, NOW_MS)}
    turns = 0
    while await store.tend():
        turns += 1
    assert turns == -(-COUNT // 7)
    assert await contents(store) == before
    again = {each.entry.id: each.score for each in await store.search(vector(1), ["p"], -1, 1000, NOW_MS)}
    assert again == pytest.approx(scores, abs=1e-5)
    assert shards(tmp_path / "s") == ["shard-2"]
    assert store.statistics()["compactions"] == 1
    assert store.statistics()["dead"] == 0
    await store.close()
    await store.open()
    assert await contents(store) == before
    await store.close()


async def change(store: Store, seed: int) -> None:
    """Something of everything, the same for the same seed."""
    chance = random.Random(seed)
    ids = [entry(f"q{chance.randrange(COUNT + 30)}").id for _ in range(4)]
    new = chance.randrange(COUNT + 30)
    await store.put([(entry(f"q{new}", answer=b"%d" % seed, tags=(f"t{seed % 9}",)), vector(new))])
    await store.touch(ids[:2], NOW_MS + 1000 + seed)
    await store.mark(ids[2], bar=0.9, complaints=seed)
    await store.drop(ids[3:])
    if seed % 4 == 0:
        await store.purge(Labels(tag=f"t{chance.randrange(9)}"))
    if seed % 7 == 3:
        await store.sweep(NOW_MS, COUNT - seed // 2)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_writes_in_between_are_not_lost(tmp_path: Path, seed: int):
    """Whatever is put, touched, marked, dropped, purged and swept between slices, it ends as a store in memory does."""
    store, model = await due(tmp_path / "s"), MemoryStore()
    await model.put([(entry(f"q{n}", used_ms=NOW_MS + n), vector(n)) for n in range(COUNT)])
    for step in range(12):
        await store.tend()
        await change(store, seed * 100 + step)
        await change(model, seed * 100 + step)
        assert await contents(store) == await contents(model)
    while await store.tend():
        pass
    assert store.statistics()["compactions"] >= 1
    assert await contents(store) == await contents(model)
    await store.close()
    await store.open()
    assert await contents(store) == await contents(model)
    await store.close()


async def test_a_crash_at_any_point_leaves_a_usable_store(tmp_path: Path):
    """A copy of the directory, taken after each turn, opens with everything in it and without leftovers."""
    store = await due(tmp_path / "s")
    before, turn = await contents(store), 0
    working = True
    while working:
        working, turn = await store.tend(), turn + 1
        copy = tmp_path / f"copy{turn}"
        copy_of(tmp_path / "s", copy)
        survivor = EmbeddedStore(copy)
        await survivor.open()
        assert await contents(survivor) == before
        assert len(shards(copy)) == 1
        await survivor.close()
    assert turn > 5
    await store.close()


async def test_a_crash_around_the_swap_leaves_a_usable_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before and after store.json names the new shard, when both are whole."""
    store = await due(tmp_path / "s")
    before, write = await contents(store), Home.write

    def copy_around(home: Home, notes) -> None:
        copy_of(tmp_path / "s", tmp_path / "copy-before")
        write(home, notes)
        copy_of(tmp_path / "s", tmp_path / "copy-after")

    with monkeypatch.context() as patched:
        patched.setattr(Home, "write", copy_around)
        while store.statistics()["shard"] == "shard-1":
            await store.tend()
    for copy, kept in (("copy-before", "shard-1"), ("copy-after", "shard-2")):
        assert shards(tmp_path / copy) == ["shard-1", "shard-2"]
        survivor = EmbeddedStore(tmp_path / copy)
        await survivor.open()
        assert await contents(survivor) == before
        assert shards(tmp_path / copy) == [kept]
        await survivor.close()
    await store.close()


async def test_closing_in_between_gives_it_up(tmp_path: Path):
    """It begins anew after the next opening, since the dead are counted in store.json."""
    store = await due(tmp_path / "s")
    await store.tend()
    assert shards(tmp_path / "s") == ["shard-1", "shard-2"]
    await store.close()
    assert shards(tmp_path / "s") == ["shard-1"]
    await store.open()
    while await store.tend():
        pass
    assert store.statistics()["compactions"] == 1
    await store.close()


async def test_a_full_disk_ends_it_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The store goes on with its old shard, says so, and does not try again at once."""
    store = await due(tmp_path / "s")
    before = await contents(store)
    await store.tend()
    with monkeypatch.context() as patched:
        patched.setattr(edge.os, "statvfs", lambda _path: SimpleNamespace(f_bavail=1 << 20, f_frsize=1))
        with pytest.raises(StoreFailed, match="free"):
            await store.tend()
    assert await contents(store) == before
    assert shards(tmp_path / "s") == ["shard-1"]
    assert store.statistics()["compactions_failed"] == 1
    assert not await store.tend()
    await store.close()


async def test_a_write_that_fails_on_the_new_shard_alone_gives_it_up(tmp_path: Path):
    """The write itself has succeeded."""
    store = await due(tmp_path / "s")
    await store.tend()
    assert store._compaction is not None
    store._compaction.new.panicked = True
    await store.put([(entry("new"), vector(1))])
    assert await store.get(entry("new").id) is not None
    assert store.statistics()["compactions_failed"] == 1
    assert shards(tmp_path / "s") == ["shard-1"]
    await store.close()
