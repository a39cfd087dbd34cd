"""Cache benchmark · bench process · a store that is full before the daemon starts, through the project's own classes.

The questions that are asked have their real vectors. So have BASES fillers; every other filler has one of those
vectors turned by a random angle (cosine TURNED), because 100 000 texts take ten minutes to embed, and a search compares
with every vector of the partition, whatever is in it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cache_questions import Pair, fillers, pairs
from metamusesd.cache.base import Entry, Store, entry_id
from metamusesd.cache.partition import identity, question_of
from metamusesd.config import Config
from metamusesd.dispatcher.identities import defaults_of
from metamusesd.job import Answer, InferenceRequest, encode_answer
from metamusesd.vectors.furnish import stores

if TYPE_CHECKING:
    import numpy as np

    from metamusesd.cache.embedder import FastEmbedder

BASES = 2_000
TURNED = 0.6, 0.95
BATCH = 500
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Layout:
    """How many answers are there, and over how many partitions (of as many tenants) they are spread."""

    entries: int
    partitions: int = 1

    @property
    def name(self) -> str:
        """How reports call it."""
        spread = "one partition" if self.partitions == 1 else f"{self.partitions} partitions"
        return f"{self.entries} entries, {spread}"

    def tenant(self, number: int) -> str:
        """Whose question this is."""
        return f"bench-{number % self.partitions}"


@dataclass(frozen=True, slots=True)
class Texts:
    """What is stored and what is asked."""

    short: list[Pair]
    long: list[Pair]
    fillers: list[str]
    vectors: np.ndarray  # of the stored ones: short, long, fillers
    asked: np.ndarray  # of the asked ones: short, long
    embeds_ms: list[float]  # what each of those took: short, long

    def stored(self, entries: int) -> list[str]:
        """The first so many of them; a pair's place is its number in `short + long`."""
        return [*(pair.stored for pair in [*self.short, *self.long]), *self.fillers][:entries]


@dataclass(frozen=True, slots=True)
class Seeded:
    """A store on disk, as a daemon finds it, and what it took."""

    state: Path
    put_s: float
    tend_s: float
    searches_ms: list[float]  # nothing but the store: vector in, neighbours out


def compose(embedder: FastEmbedder, entries: int, short: int, long: int) -> Texts:
    """Every text and its vector. Takes 6 ms a short and 16 ms a long text that is embedded."""
    import numpy as np

    ours, theirs = pairs(short, long=False), pairs(long, long=True)
    both = [*ours, *theirs]
    rest = fillers(max(0, entries - len(both)))
    real = [np.stack(embedder.embed([pair.stored for pair in both]))]
    if rest:
        bases = np.stack(embedder.embed(rest[:BASES]))
        real += [bases, turned(bases, len(rest) - len(bases))]
    asked: list[np.ndarray] = []
    embeds_ms: list[float] = []
    for pair in both:
        began_s = time.perf_counter()
        asked += embedder.embed([pair.asked])
        embeds_ms.append((time.perf_counter() - began_s) * 1000)
    return Texts(ours, theirs, rest, np.concatenate(real), np.stack(asked), embeds_ms)


def turned(bases: np.ndarray, count: int, seed: int = 3) -> np.ndarray:
    """`count` unit vectors, each at a random angle from one of the bases."""
    import numpy as np

    random = np.random.default_rng(seed)
    base = bases[random.integers(len(bases), size=count)]
    away = random.standard_normal(base.shape, dtype=np.float32)
    away -= (away * base).sum(1, keepdims=True) * base
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    cosine = random.uniform(*TURNED, size=(count, 1)).astype(np.float32)
    made: np.ndarray = cosine * base + np.sqrt(1 - cosine**2) * away
    return made


def identity_of_echo(config: Config) -> str:
    """Of the echo engine's answers: the dispatcher computes the same out of the worker's HELLO."""
    return identity("echo:1", "echo", "echo", **defaults_of(config)[config.tiers["fast"].model])


def seed(config: Config, embedder: FastEmbedder, layout: Layout, texts: Texts) -> Seeded:
    """Fill the store of this configuration, tend it until nothing is due, time searches, close it."""
    return asyncio.run(_seed(config, embedder, layout, texts))


async def _seed(config: Config, embedder: FastEmbedder, layout: Layout, texts: Texts) -> Seeded:
    store, _ = stores(config, embedder)
    whose, made = identity_of_echo(config), texts.stored(layout.entries)
    await store.open()
    began_s = time.perf_counter()
    for first in range(0, len(made), BATCH):
        batch = enumerate(made[first : first + BATCH], first)
        await store.put([(_entry(text, layout.tenant(n), whose), texts.vectors[n]) for n, text in batch])
    put_s, began_s = time.perf_counter() - began_s, time.perf_counter()
    while await store.tend():
        pass
    tend_s = time.perf_counter() - began_s
    searches_ms = await _searches(store, layout, texts, whose)
    await store.close()
    return Seeded(config.state_dir, put_s, tend_s, searches_ms)


async def _searches(store: Store, layout: Layout, texts: Texts, whose: str) -> list[float]:
    took_ms = []
    for number, pair in enumerate(texts.short):
        partition = _partition(pair.asked, layout.tenant(number), whose)
        began_s = time.perf_counter()
        found = await store.search(texts.asked[number], [partition], 0.85, 8, _now_ms())
        took_ms.append((time.perf_counter() - began_s) * 1000)
        assert found, pair
    return took_ms


def _entry(text: str, tenant: str, whose: str) -> Entry:
    partition, now_ms = _partition(text, tenant, whose), _now_ms()
    answer = Answer(content=text, model_name="echo", model_digest="echo:1", tier="fast", created_ms=now_ms, job="seed")
    return Entry(
        id=entry_id(partition, text), partition=partition, query=text, answer=encode_answer(answer), tenant=tenant,
        model="echo:1", created_ms=now_ms, expires_ms=now_ms + DAY_MS, used_ms=now_ms,
    )  # fmt: skip


def _partition(text: str, tenant: str, whose: str) -> str:
    return question_of(InferenceRequest(user_query=text, tenant=tenant, tier="fast")).partition(whose)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
