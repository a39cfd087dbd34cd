"""Stage 4 · vectors process, and any process that holds promises · a store in memory, searched exactly.

The fake of the unit tests, and the place of answers that are about to be given. Nothing here waits or fails: a search
is one product of a matrix and a vector, 0.1 ms at 1000 entries; put and drop cost microseconds.

Row `n` of every array belongs to `_entries[n]`. A dropped row is filled with the last one, so that rows stay dense.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from metamusesd.cache.base import DIMENSION, Entry, Labels, Neighbour

if TYPE_CHECKING:
    from metamusesd.cache.base import Vector

FIRST_ROWS = 64


class MemoryStore:
    """Implements Store for one process, for as long as it lives. Call it from one thread."""

    def __init__(self, dimension: int = DIMENSION) -> None:
        self._entries: list[Entry] = []
        self._rows: dict[str, int] = {}
        self._vectors = np.zeros((FIRST_ROWS, dimension), np.float32)
        self._codes = np.zeros(FIRST_ROWS, np.int64)  # hash of the partition: a quick filter, checked again by name
        self._expiries = np.zeros(FIRST_ROWS, np.int64)

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do; what is here is gone with the object."""

    async def put(self, entries: Sequence[tuple[Entry, Vector]]) -> None:
        """As promised by Store."""
        for entry, vector in entries:
            self._set(self._rows.setdefault(entry.id, len(self._entries)), entry, vector)

    async def search(
        self, vector: Vector, partitions: Sequence[str], floor: float, count: int, now_ms: int
    ) -> list[Neighbour]:
        """As promised by Store, exactly."""
        size, wanted = len(self._entries), frozenset(partitions)
        rows = np.zeros(size, bool)
        for partition in wanted:
            rows |= self._codes[:size] == hash(partition)
        chosen = np.flatnonzero(rows & (self._expiries[:size] > now_ms))
        scores = np.clip(self._score(chosen, np.asarray(vector, np.float32)), -1, 1)
        best = (int(row) for row in np.argsort(-scores, kind="stable")[: np.count_nonzero(scores >= floor)])
        found = (Neighbour(self._entries[chosen[n]], float(scores[n])) for n in best)
        return [each for each in found if each.entry.partition in wanted][: max(count, 0)]

    async def get(self, id: str) -> Entry | None:
        """As promised by Store."""
        row = self._rows.get(id)
        return None if row is None else self._entries[row]

    async def touch(self, ids: Collection[str], used_ms: int) -> None:
        """As promised by Store."""
        for id in ids:
            self._change(id, used_ms=used_ms)

    async def mark(self, id: str, *, bar: float, complaints: int) -> None:
        """As promised by Store."""
        self._change(id, bar=bar, complaints=complaints)

    async def drop(self, ids: Collection[str]) -> None:
        """As promised by Store."""
        for id in ids:
            self._drop(id)

    async def purge(self, labels: Labels) -> int:
        """As promised by Store."""
        return self._drop_all([entry.id for entry in self._entries if matches(entry, labels)])

    async def sweep(self, now_ms: int, most: int) -> int:
        """As promised by Store."""
        expired = self._drop_all([entry.id for entry in self._entries if entry.expires_ms <= now_ms])
        beyond = max(len(self._entries) - most, 0)
        oldest = sorted(self._entries, key=lambda entry: entry.used_ms)[:beyond]
        return expired + self._drop_all([entry.id for entry in oldest])

    async def count(self) -> int:
        """As promised by Store."""
        return len(self._entries)

    async def tend(self) -> bool:
        """Nothing is ever due."""
        return False

    def statistics(self) -> Mapping[str, Any]:
        """Facts for people."""
        return {"kind": "memory", "where": "memory", "entries": len(self._entries), "bytes": self._vectors.nbytes}

    def _score(self, rows: np.ndarray, vector: Vector) -> np.ndarray:
        """Of these rows; whichever is cheaper: to copy them out, or to multiply all."""
        size = len(self._entries)
        if len(rows) * 4 < size:
            return np.asarray(self._vectors[rows] @ vector)
        return np.asarray((self._vectors[:size] @ vector)[rows])

    def _set(self, row: int, entry: Entry, vector: Vector) -> None:
        if row == len(self._entries):
            self._entries.append(entry)
            self._grow()
        self._entries[row] = entry
        self._vectors[row], self._codes[row], self._expiries[row] = vector, hash(entry.partition), entry.expires_ms

    def _grow(self) -> None:
        if len(self._entries) <= len(self._codes):
            return
        for name in ("_vectors", "_codes", "_expiries"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros_like(old)]))

    def _change(self, id: str, **fields: Any) -> None:
        row = self._rows.get(id)
        if row is not None:
            self._entries[row] = msgspec.structs.replace(self._entries[row], **fields)

    def _drop_all(self, ids: Sequence[str]) -> int:
        for id in ids:
            self._drop(id)
        return len(ids)

    def _drop(self, id: str) -> None:
        row = self._rows.pop(id, None)
        if row is None:
            return
        last = len(self._entries) - 1
        if row != last:
            self._rows[self._entries[last].id] = row
            self._set(row, self._entries[last], self._vectors[last])
        self._entries.pop()


def matches(entry: Entry, labels: Labels) -> bool:
    """Every label that is given, and none given matches all."""
    return (
        labels.tenant in (None, entry.tenant)
        and labels.muse in (None, entry.muse)
        and labels.model in (None, entry.model)
        and (labels.tag is None or labels.tag in entry.tags)
    )
