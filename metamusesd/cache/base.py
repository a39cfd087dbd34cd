"""Stage 4 · vectors process · the door to the semantic cache's store, and the words that pass through it.

Three implementations stand behind `Store` and pass one contract suite: `qdrant_embedded` (Qdrant Edge, on disk, the
default), `qdrant_server` (a Qdrant server, shared by many hosts), and `memory` (the fake of the unit tests, and the
place of promises: answers that a job in flight is about to give).

An entry is found by its vector and by nothing else than its own partition: the partition is a digest of everything that
must be equal (partition.py) and a hard filter of every search. Times are milliseconds since the epoch.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:  # the dispatcher imports this file and needs no numpy
    import numpy as np
    import numpy.typing as npt

    Vector: TypeAlias = npt.NDArray[np.float32]  # [DIMENSION], of length 1: the dot product is the cosine

DIMENSION = 384  # of all-MiniLM-L6-v2


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One question and its answer. `id` is `entry_id(partition, query)`: the same question again replaces it."""

    id: str
    partition: str
    query: str
    answer: bytes = b""  # JSON of job.Answer; empty: promised by the flight below
    flight: str = ""  # the single-flight digest of a job that is about to answer
    tenant: str = "default"
    muse: str = ""
    model: str = ""  # digest
    tags: tuple[str, ...] = ()
    created_ms: int = 0
    expires_ms: int = 0
    used_ms: int = 0  # the last hit, or its making: the least recently used goes first
    bar: float = 0.0  # hits only from this score on: somebody reported a wrong hit under it
    complaints: int = 0  # hits that were reported as wrong


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What a search found. `score` is the cosine, -1 … 1."""

    entry: Entry
    score: float


@dataclass(frozen=True, slots=True)
class Labels:
    """Which entries to forget: those that match every label that is given. None given: all of them."""

    tenant: str | None = None
    muse: str | None = None
    model: str | None = None
    tag: str | None = None


class Embedder(Protocol):
    """Texts to vectors."""

    identity: str  # digest of the weights, the tokenizer and the window: another one is another vector space
    window: int  # tokens, the two special ones included; a longer text must not be looked up

    def fits(self, text: str) -> bool:
        """Whether the whole text is seen, and not only its beginning."""

    def cuts(self, text: str) -> bool:
        """Whether the window ends before the text does."""

    def embed(self, texts: Sequence[str]) -> Sequence[Vector]:
        """A vector each, of what the window sees. Blocks: call it off the event loop. Raises EmbedderFailed."""


class Store(Protocol):
    """Vectors with their entries. Calls may overlap; each waits off the event loop.

    Every method raises StoreFailed when the store cannot do it (disk full, server away, files broken): to the caller
    that is a miss, or an answer that was not kept, and never an error of the job.
    """

    async def open(self) -> None:
        """Create what is missing and check what is there. Legal twice. Raises StoreRefused when what is there cannot be
        used as it is: another dimension or distance, a store that another process holds."""

    async def close(self) -> None:
        """Write everything out. Legal twice."""

    async def put(self, entries: Sequence[tuple[Entry, Vector]]) -> None:
        """Insert or replace by id."""

    async def search(
        self, vector: Vector, partitions: Sequence[str], floor: float, count: int, now_ms: int
    ) -> list[Neighbour]:
        """Up to `count` entries of these partitions, unexpired, with a score of at least `floor`, best first."""

    async def get(self, id: str) -> Entry | None:
        """One entry, expired or not."""

    async def touch(self, ids: Collection[str], used_ms: int) -> None:
        """They were used just now. Unknown ids are ignored."""

    async def mark(self, id: str, *, bar: float, complaints: int) -> None:
        """After a report of a wrong hit. An unknown id is ignored."""

    async def drop(self, ids: Collection[str]) -> None:
        """Remove these."""

    async def purge(self, labels: Labels) -> int:
        """Remove all that match; how many there were."""

    async def sweep(self, now_ms: int, most: int) -> int:
        """Remove the expired, and the least recently used beyond `most` entries; how many were removed."""

    async def count(self) -> int:
        """Entries, the expired included until they are swept."""

    async def tend(self) -> bool:
        """Do what maintenance is due, off the path of searches; True: something was done. Called when nothing else is
        going on, again and again."""

    def statistics(self) -> Mapping[str, Any]:
        """Facts for people: kind, where, entries, bytes, …"""


def entry_id(partition: str, query: str) -> str:
    """A UUID (Qdrant takes nothing else) made of both."""
    return str(uuid.uuid5(_NAMESPACE, f"{partition}\0{query}"))


def encode_entry(entry: Entry) -> bytes:
    """As it travels between our processes: msgpack."""
    return _ENCODER.encode(entry)


def decode_entry(raw: bytes) -> Entry:
    """The inverse."""
    return _DECODER.decode(raw)


_ENCODER, _DECODER = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(Entry)
_NAMESPACE = uuid.UUID("6f1c1d0e-5a0b-4b0e-9a51-0d9c6a4c1f7e")
