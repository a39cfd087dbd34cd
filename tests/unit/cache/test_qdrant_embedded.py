"""The embedded store beyond the common suite: its directory, what may happen to it, and that it never lies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from metamusesd.cache import edge
from metamusesd.cache.base import DIMENSION, Labels
from metamusesd.cache.edge import Shard
from metamusesd.cache.payload import payload_of, space_name
from metamusesd.cache.qdrant_embedded import FLUSH_S, EmbeddedStore
from metamusesd.errors import StoreFailed, StoreRefused
from tests.contract.test_vector_store import NOW_MS, entry, queries, vector


async def opened(directory: Path, **more) -> EmbeddedStore:
    store = EmbeddedStore(directory, **more)
    await store.open()
    return store


async def filled(directory: Path, count: int = 3, **more) -> EmbeddedStore:
    store = await opened(directory, **more)
    await store.put([(entry(f"q{n}"), vector(n)) for n in range(count)])
    return store


async def test_everything_is_there_after_reopening(tmp_path: Path):
    """Entries, touches, marks and removals."""
    store = await filled(tmp_path / "s")
    await store.touch([entry("q0").id], NOW_MS + 7)
    await store.mark(entry("q1").id, bar=0.9, complaints=2)
    await store.drop([entry("q2").id])
    kept = [await store.get(entry(f"q{n}").id) for n in range(3)]
    await store.close()
    store = await opened(tmp_path / "s")
    assert [await store.get(entry(f"q{n}").id) for n in range(3)] == kept
    assert await queries(store, vector(0)) == ["q0", "q1"]
    assert store.statistics()["entries"] == 2
    await store.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from metamusesd.cache.qdrant_embedded import EmbeddedStore
from tests.contract.test_vector_store import entry, vector

async def main():
    store = EmbeddedStore(Path(sys.argv[1]))
    await store.open()
    for n in range(1000000):
        await store.put([(entry(f"q{n}"), vector(n % 50))])
        print(n, flush=True)

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_a_killed_process(tmp_path: Path):
    """SIGKILL in the middle of puts: every one that had returned is there, and the lock is free."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        acknowledged = 0
        while acknowledged < 60:
            acknowledged = int(child.stdout.readline()) + 1
        child.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) + 1 for line in child.stdout.read().splitlines())])
    store = await opened(tmp_path / "s")
    for n in range(acknowledged):
        assert await store.get(entry(f"q{n}").id) is not None
    await store.close()


async def test_a_second_opener_is_refused(tmp_path: Path):
    """While the first one has it open; it is told who that is, and nothing happens to the first."""
    first = await filled(tmp_path / "s")
    second = EmbeddedStore(tmp_path / "s")
    with pytest.raises(StoreRefused, match=str(os.getpid())):
        await second.open()
    await second.close()
    assert await first.count() == 3
    await first.close()
    await (await opened(tmp_path / "s")).close()


async def test_another_dimension_is_refused(tmp_path: Path):
    """And a vector of another length is not kept."""
    store = await filled(tmp_path / "s")
    with pytest.raises(StoreFailed, match="384"):
        await store.put([(entry("short"), vector(1)[:8])])
    await store.close()
    with pytest.raises(StoreRefused, match="dimension is 384, and must be 8"):
        await opened(tmp_path / "s", dimension=8)


async def test_two_embedders_have_two_spaces(tmp_path: Path):
    """Their directories differ, and what is in one is not in the other."""
    one = await filled(tmp_path / space_name("cache", "aaaa"))
    two = await opened(tmp_path / space_name("cache", "bbbb"))
    assert await two.count() == 0
    await two.close()
    await one.close()


def spoil_notes(store: Path) -> None:
    (store / "store.json").write_text("{")


def other_format(store: Path) -> None:
    (store / "store.json").write_text(json.dumps({"format": 99}))


def other_distance(store: Path) -> None:
    (store / "store.json").write_text(json.dumps({"distance": "dot"}))


def strange_shard(store: Path) -> None:
    (store / "store.json").write_text(json.dumps({"shard": "shard-../../etc"}))


def shard_is_gone(store: Path) -> None:
    shutil.rmtree(store / "shard-1")


def spoil_config(store: Path) -> None:
    (store / "shard-1" / "edge_config.json").write_bytes(b"\xa5" * 50)


def spoil_segment(store: Path) -> None:
    next((store / "shard-1").rglob("segment.json")).write_bytes(b"")


def panic(store: Path) -> None:
    next((store / "shard-1").rglob("deleted/status.dat")).write_bytes(b"")


@pytest.mark.parametrize("spoil", [spoil_notes, strange_shard, shard_is_gone, spoil_config, spoil_segment, panic])
async def test_damaged_files_are_set_aside(tmp_path: Path, spoil):
    """As a power cut leaves them: the cache begins anew, works, and says so; the old files are kept once."""
    for _ in range(2):
        await (await filled(tmp_path / "s")).close()
        spoil(tmp_path / "s")
        store = await opened(tmp_path / "s")
        assert await store.count() == 0 and store.statistics()["set_aside"] == 1
        await store.put([(entry("q"), vector(1))])
        await store.close()
        assert (tmp_path / "s" / "broken").is_dir()


@pytest.mark.parametrize("spoil", [other_format, other_distance])
async def test_foreign_files_are_refused(tmp_path: Path, spoil):
    """With the directory and what to do about it; and again the next time, since nothing was taken."""
    await (await filled(tmp_path / "s")).close()
    spoil(tmp_path / "s")
    for _ in range(2):
        with pytest.raises(StoreRefused, match=rf"{tmp_path}.*delete"):
            await opened(tmp_path / "s")


async def test_vectors_that_cannot_be_read_are_a_failure(tmp_path: Path):
    """Edge opens such a shard; a search says so, instead of finding nothing."""
    await (await filled(tmp_path / "s")).close()
    next((tmp_path / "s").rglob("chunk_0.mmap")).unlink()
    shutil.rmtree(tmp_path / "s" / "shard-1" / "wal")  # which would mend it
    store = await opened(tmp_path / "s")
    with pytest.raises(StoreFailed, match="not readable"):
        await queries(store, vector(1))
    await store.close()


async def test_points_of_another_format_are_refused(tmp_path: Path):
    """A store that a later version has written."""
    await (await opened(tmp_path / "s")).close()
    shard = Shard.load(tmp_path / "s" / "shard-1")
    shard.put_raw([(entry("q").id, vector(1).tolist(), payload_of(entry("q")) | {"format": 2})])
    shard.close()
    with pytest.raises(StoreRefused, match="format"):
        await opened(tmp_path / "s")


async def test_a_directory_removed_while_running_fails_every_call(tmp_path: Path):
    """Although Edge would go on; `tend` makes a new one, which is empty and works."""
    store = await filled(tmp_path / "s")
    shutil.rmtree(tmp_path / "s")
    for call in (
        store.search(vector(1), ["p"], 0, 1, NOW_MS), store.put([(entry("q"), vector(1))]), store.count(),
        store.get(entry("q0").id), store.touch([entry("q0").id], 1), store.purge(Labels()), store.sweep(NOW_MS, 1),
    ):  # fmt: skip
        with pytest.raises(StoreFailed, match="removed"):
            await call
    assert await store.tend()
    assert await store.count() == 0
    await store.put([(entry("q"), vector(1))])
    assert await queries(store, vector(1)) == ["q"]
    await store.close()
    await (await opened(tmp_path / "s")).close()


async def test_a_directory_removed_while_running_can_be_closed(tmp_path: Path):
    """And it does not come back."""
    store = await filled(tmp_path / "s")
    shutil.rmtree(tmp_path / "s")
    await store.close()
    assert not (tmp_path / "s").exists()


class Panic(BaseException):
    """Like pyo3's."""


async def test_a_panic_fails_calls_until_the_shard_is_opened_anew(tmp_path: Path):
    """No BaseException gets out, nobody trusts the shard any more, and nothing is lost."""
    store = await filled(tmp_path / "s")
    assert store._shard is not None

    def panics(*_given):
        raise Panic("index out of bounds")

    store._shard._shard = SimpleNamespace(query=panics, close=store._shard._shard.close)
    with pytest.raises(StoreFailed, match="index out of bounds"):
        await queries(store, vector(1))
    with pytest.raises(StoreFailed, match="anew"):
        await store.count()
    assert await store.tend()
    assert await store.count() == 3
    assert store.statistics()["reopened"] == 1
    await store.close()


async def test_a_broken_index_is_no_hole_in_the_wall(tmp_path: Path):
    """Points of another partition, expired, under the floor or unreadable are passed over whatever Edge returns."""
    store = await filled(tmp_path / "s")
    assert store._shard is not None
    edge_shard = store._shard._shard
    wrong = [
        (entry("other wall", "other"), 0.99), (entry("expired", expires_ms=NOW_MS), 0.99), (entry("low"), 0.1),
        (entry("right"), 0.98),
    ]  # fmt: skip
    points = [SimpleNamespace(id=each.id, score=score, payload=payload_of(each)) for each, score in wrong]
    points.append(SimpleNamespace(id=entry("x").id, score=0.99, payload={"strange": True}))
    store._shard._shard = SimpleNamespace(query=lambda _request: points)
    assert await queries(store, vector(1), floor=0.5) == ["right"]
    store._shard._shard = edge_shard
    await store.close()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A disk with as many free bytes as the list's one number."""
    free = [1 << 40]

    def statvfs(_path):
        return SimpleNamespace(f_bavail=free[0], f_frsize=1)

    with monkeypatch.context() as patched:
        patched.setattr(edge.os, "statvfs", statvfs)
        yield free


async def test_a_full_disk_is_met_before_edge_meets_it(tmp_path: Path, full_disk: list[int]):
    """Nothing is put any more, while searches go on; removing works longer; room again, and all is well."""
    store = await filled(tmp_path / "s")
    full_disk[0] = edge.PUT_RESERVE_BYTES - 1
    with pytest.raises(StoreFailed, match="128 MiB"):
        await store.put([(entry("q"), vector(1))])
    assert await queries(store, vector(1), floor=0.9) == ["q1"]
    await store.drop([entry("q1").id])
    assert await store.count() == 2
    full_disk[0] = 0
    with pytest.raises(StoreFailed):
        await store.drop([entry("q0").id])
    assert await queries(store, vector(0), floor=0.9) == ["q0"]
    full_disk[0] = 1 << 40
    await store.put([(entry("q"), vector(1))])
    assert await store.count() == 3
    await store.close()


@contextlib.contextmanager
def small_disk(place: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own, or the test is skipped."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(place)]
    if os.getuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


FILL = """
import asyncio, os, sys
from pathlib import Path
from metamusesd.cache.qdrant_embedded import EmbeddedStore
from metamusesd.errors import StoreFailed
from tests.contract.test_vector_store import NOW_MS, entry, queries, vector

async def main():
    store = EmbeddedStore(Path(sys.argv[1]))
    await store.open()
    try:
        for n in range(5000):
            await store.put([(entry(f"q{n}", answer=os.urandom(20_000).hex().encode()), vector(n % 50))])
    except StoreFailed as error:
        print(error)
    assert len(await queries(store, vector(1), count=5)) == 5
    await store.close()
    await store.open()
    print(await store.count() == n)

asyncio.run(main())
"""


def test_a_disk_that_really_fills_up_kills_nobody(tmp_path: Path):
    """On a tmpfs of 200 MiB: puts fail in good time, and no SIGBUS."""
    with small_disk(tmp_path / "disk", 200) as disk:
        done = subprocess.run([sys.executable, "-c", FILL, str(disk / "s")], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert "MiB are free" in done.stdout
    assert done.stdout.endswith("True\n")


async def test_a_place_that_cannot_be_written_is_a_failure(tmp_path: Path):
    """That may pass, and no refusal."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed, match="file"):
        await opened(tmp_path / "file" / "s")


async def test_writes_are_flushed_now_and_then(tmp_path: Path):
    """By `tend`, FLUSH_S after the last time, and only when there is something."""
    now_s = [100.0]
    store = await filled(tmp_path / "s", clock_s=lambda: now_s[0])
    assert not await store.tend()
    assert store.statistics()["unflushed"] == 3
    now_s[0] += FLUSH_S
    assert await store.tend()
    assert store.statistics()["unflushed"] == 0
    assert store.statistics()["entries"] == 3
    assert store.statistics()["bytes"] > 0
    assert not await store.tend()
    await store.close()


async def test_the_log_is_cut_even_if_nobody_tends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else a busy day would fill the disk."""
    monkeypatch.setattr("metamusesd.cache.qdrant_embedded.FLUSH_WRITES", 10)
    store = await filled(tmp_path / "s", 19)
    assert store.statistics()["unflushed"] == 19
    await store.put([(entry("one more"), vector(1))])
    assert store.statistics()["unflushed"] == 0
    await store.close()


async def test_a_cancelled_call_leaves_the_store_usable(tmp_path: Path):
    """The caller's patience ends, not the work."""
    store = await filled(tmp_path / "s")
    call = asyncio.ensure_future(store.put([(entry("late"), vector(9))]))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await store.count() in (3, 4)
    assert len(vector(1)) == DIMENSION
    await store.close()


async def test_a_store_that_could_not_be_opened_anew_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The directory was removed, and there was no room for a new one at first: later there is."""
    store = await filled(tmp_path / "s")
    shutil.rmtree(tmp_path / "s")
    create = Shard.create
    monkeypatch.setattr(Shard, "create", lambda *_: (_ for _ in ()).throw(StoreFailed("no room")))
    for _ in range(2):
        with pytest.raises(StoreFailed, match="no room"):
            await store.tend()
    monkeypatch.setattr(Shard, "create", create)
    assert await store.tend()
    await store.put([(entry("q"), vector(1))])
    assert await store.count() == 1
    await store.close()
