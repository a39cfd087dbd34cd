"""Stage 4 · vectors process · one shard of Qdrant Edge on disk, with nothing asynchronous about it.

What was measured decided the shape (100 000 points in one partition, two shared cores):
- No graph. An HNSW index needs optimize(), which holds the interpreter lock for minutes. A scan of 8-bit vectors
  (Turbo8) takes 2.9 ms where 32-bit ones take 9.6, and its scores are within 0.0005 of the exact ones.
- One `MatchValue` a partition under `should` costs 1 ms, a `MatchAny` 5 ms, a condition on the expiry 2 to 15 ms. So
  the expiry is a condition only of a second search, made when the first one met an expired entry.
- A search keeps the interpreter lock. It is short enough.

DANGER: Edge maps its files and lets them grow sparsely, so on a full disk a write is no error but SIGBUS, the end of
the process (seen on a tmpfs). Hence the reserves: no write begins with less room than that. And Edge panics on some
broken files, and pyo3's PanicException is no Exception: the door catches BaseException.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import qdrant_edge as edge

from metamusesd.cache.base import DIMENSION, Entry, Labels, Neighbour
from metamusesd.cache.payload import FORMAT, INTEGERS, KEYWORDS, cosine, entry_of, payload_of
from metamusesd.errors import CacheError, StoreBroken, StoreFailed, StoreRefused

PUT_RESERVE_BYTES = 128 << 20  # Edge grows its files by 32 MiB; several may grow at once
SMALL_RESERVE_BYTES = 16 << 20  # to forget must work longer than to remember
TINY = 1e-6  # Edge wants scores above its threshold, we want "at least"

Offset = Any  # where a page begins; None: at the beginning
Vector = Any  # an array or a list of floats
Point = tuple[str, list[float], dict[str, Any]]  # id, vector, payload


class Shard:
    """Call it from one thread at a time. Every method blocks for milliseconds and raises StoreFailed."""

    def __init__(self, directory: Path, shard: edge.EdgeShard, dimension: int = DIMENSION) -> None:
        self.directory, self.dimension = directory, dimension
        self.panicked = False  # it must be opened anew
        self._shard = shard

    @classmethod
    def create(cls, directory: Path, dimension: int = DIMENSION) -> Shard:
        """A new one; the directory must not exist."""
        with _translated(directory):
            require_room(directory.parent, PUT_RESERVE_BYTES)
            directory.mkdir()
            shard = edge.EdgeShard.create(str(directory), _config(dimension))
            for name in KEYWORDS:
                shard.update(edge.UpdateOperation.create_field_index(name, edge.KeywordIndexParams()))
            for name in INTEGERS:
                index = edge.IntegerIndexParams(lookup=False, range=True)
                shard.update(edge.UpdateOperation.create_field_index(name, index))
            shard.flush()
            return cls(directory, shard, dimension)

    @classmethod
    def load(cls, directory: Path, dimension: int = DIMENSION) -> Shard:
        """One that is there. Raises StoreBroken when its files are, StoreRefused when they are of another kind."""
        remedy = f"delete {directory.parent} (only cached answers are lost), or choose another cache.collection"
        if not directory.is_dir():
            raise StoreBroken(f"the shard {directory} is missing; {remedy}")
        try:
            with _translated(directory):
                require_room(directory, SMALL_RESERVE_BYTES)
                shard = cls(directory, edge.EdgeShard.load(str(directory), _config(dimension)), dimension)
        except StoreFailed as error:
            if isinstance(error.__cause__, OSError) or error.__cause__ is None:
                raise
            raise StoreBroken(f"{error.message}; {remedy}") from error
        foreign = [
            payload for _, _, payload in shard.page(None, 1, vectors=False)[0] if payload.get("format") != FORMAT
        ]
        if foreign:
            shard.close()
            raise StoreRefused(f"{directory} holds points of another format than {FORMAT}; {remedy}")
        return shard

    def close(self) -> None:
        """Let go of the files; what was not flushed is in the write-ahead log. Legal twice, never raises."""
        with contextlib.suppress(BaseException):  # a shard that has panicked is let go of, too
            self._shard.close()

    def flush(self) -> None:
        """Write out; the write-ahead log is cut. 10 ms after a few writes, half a second after 100 000."""
        with self._door(SMALL_RESERVE_BYTES):
            self._shard.flush()

    def put(self, entries: Sequence[tuple[Entry, Vector]]) -> None:
        """Insert or replace."""
        self.put_raw([(entry.id, [float(x) for x in vector], payload_of(entry)) for entry, vector in entries])

    def put_raw(self, points: Sequence[Point]) -> None:
        """The same, of what `page` returned."""
        with self._door(PUT_RESERVE_BYTES):
            if any(len(vector) != self.dimension for _, vector, _ in points):
                raise StoreFailed(f"a vector has not {self.dimension} numbers")
            if points:
                self._shard.update(edge.UpdateOperation.upsert_points([edge.Point(*point) for point in points]))

    def search(
        self, vector: Vector, partitions: Collection[str], floor: float, count: int, now_ms: int
    ) -> list[Neighbour]:
        """As promised by Store."""
        if not partitions or count < 1:
            return []
        request: dict[str, Any] = {
            "limit": count, "query": edge.Query.Nearest([float(x) for x in vector]), "score_threshold": floor - TINY,
            "with_payload": True,
        }  # fmt: skip
        any_of: list[Any] = [_equals("partition", partition) for partition in partitions]
        with self._door():
            points = self._shard.query(edge.QueryRequest(filter=edge.Filter(should=any_of), **request))
            if len(points) == count and any((point.payload or {}).get("expires_ms", 0) <= now_ms for point in points):
                unexpired = edge.Filter(should=any_of, must_not=[_expired(now_ms)])
                points = self._shard.query(edge.QueryRequest(filter=unexpired, **request))
        found = [Neighbour(entry, cosine(point.score)) for point in points if (entry := _entry(point))]
        # Looked at again, because an index whose file was lost or mixed up is no wall between partitions.
        return [
            each
            for each in found
            if each.score >= floor and each.entry.partition in partitions and each.entry.expires_ms > now_ms
        ]

    def get(self, id: str) -> Entry | None:
        """One entry."""
        with self._door():
            records = self._shard.retrieve([id], with_payload=True, with_vector=False)
            return _entry(records[0]) if records else None

    def set(self, ids: Collection[str], fields: dict[str, Any]) -> None:
        """Change fields of these; unknown ids are ignored."""
        with self._door(SMALL_RESERVE_BYTES):
            # By filter, because set_payload() stops at the first unknown id.
            if ids:
                chosen = edge.Filter(must=[edge.HasIdCondition(set(ids))])
                self._shard.update(edge.UpdateOperation.set_payload_by_filter(chosen, fields))

    def drop(self, ids: Collection[str]) -> int:
        """Remove these; how many there were. 20 µs each."""
        with self._door(SMALL_RESERVE_BYTES):
            before = self._shard.info().points_count
            if ids:
                self._shard.update(edge.UpdateOperation.delete_points(list(ids)))
            return int(before - self._shard.info().points_count)

    def labelled(self, labels: Labels, most: int) -> list[str]:
        """Ids of up to so many entries that match."""
        given = {"tenant": labels.tenant, "muse": labels.muse, "model": labels.model, "tags": labels.tag}
        return self._some([_equals(name, value) for name, value in given.items() if value is not None], most)

    def expired(self, now_ms: int, most: int) -> list[str]:
        """Ids of up to so many expired entries."""
        return self._some([_expired(now_ms)], most)

    def oldest(self, most: int) -> list[str]:
        """Ids of the least recently used."""
        if most < 1:
            return []
        with self._door():
            order = edge.OrderBy("used_ms", edge.Direction.Asc)
            return [str(each.id) for each in self._shard.query(edge.QueryRequest(limit=most, query=order))]

    def count(self) -> int:
        """Entries. Exact, because there is one segment."""
        with self._door():
            return int(self._shard.info().points_count)

    def page(self, offset: Offset, most: int, vectors: bool = True) -> tuple[list[Point], Offset]:
        """Points by id from `offset` on, and where the next page begins (None: that was all)."""
        with self._door():
            request = edge.ScrollRequest(limit=most, offset=offset, with_payload=True, with_vector=vectors)
            records, following = self._shard.scroll(request)
            return [(str(each.id), cast("list[float]", each.vector), each.payload or {}) for each in records], following

    def _some(self, must: list[Any], most: int) -> list[str]:
        with self._door():
            request = edge.ScrollRequest(limit=most, filter=edge.Filter(must=must), with_payload=False)
            return [str(each.id) for each in self._shard.scroll(request)[0]]

    @contextlib.contextmanager
    def _door(self, reserve_bytes: int = 0) -> Iterator[None]:
        if self.panicked:
            raise StoreFailed(f"the shard {self.directory} failed before and must be opened anew")
        try:
            with _translated(self.directory):
                if reserve_bytes:
                    require_room(self.directory, reserve_bytes)
                yield
        except StoreFailed as error:
            self.panicked = error.__cause__ is not None and not isinstance(error.__cause__, Exception)
            raise


def require_room(directory: Path, bytes: int) -> None:
    """Raises StoreFailed when the disk has less."""
    try:
        room = os.statvfs(directory)
    except OSError as error:
        raise StoreFailed(f"{directory} cannot be used: {error.strerror}") from error
    if room.f_bavail * room.f_frsize < bytes:
        raise StoreFailed(f"less than {bytes >> 20} MiB are free for {directory}")


@contextlib.contextmanager
def _translated(directory: Path) -> Iterator[None]:
    try:
        yield
    except (CacheError, GeneratorExit):
        raise
    except BaseException as error:  # a panic is no Exception; nobody interrupts the store's thread
        raise StoreFailed(f"the shard {directory} failed: {error}") from error


def _config(dimension: int) -> edge.EdgeConfig:
    vectors = edge.EdgeVectorParams(
        size=dimension, distance=edge.Distance.Cosine, datatype=edge.VectorStorageDatatype.Turbo8
    )
    return edge.EdgeConfig(vectors=vectors, max_search_threads=1)


def _equals(name: str, value: str) -> edge.FieldCondition:
    return edge.FieldCondition(key=name, match=edge.MatchValue(value))


def _expired(now_ms: int) -> edge.FieldCondition:
    return edge.FieldCondition(key="expires_ms", range=edge.RangeFloat(lte=float(now_ms)))


def _entry(point: edge.ScoredPoint | edge.Record) -> Entry | None:
    return entry_of(str(point.id), point.payload)
