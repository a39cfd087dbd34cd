"""Engine benchmark · bench process · what is asked, who is asked, and what was seen: the load generator.

One process and one event loop ask both sides in the same way, so that the generator's own cost weighs on both alike.
Times are `time.perf_counter()` seconds as the producer sees them; TTFT counts from just before the submit.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.styles import STYLES, Style

START_TIMEOUT_S = 180.0  # until streams have their first tokens

WORDS = """
river stone morning window letter garden winter bridge candle market harbor silver forest engine paper mountain
shadow circle music island copper season travel meadow thunder pocket ladder valley mirror basket signal planet
orange cotton hammer village ocean ticket marble needle lantern puzzle wagon feather anchor velvet saddle the a one
every some that this which before after under over with without between because although until finds carries opens
builds follows answers keeps turns remembers measures covers reaches explains crosses paints old quiet bright narrow
heavy simple distant careful empty golden early certain gentle broken sudden
"""


@dataclass(frozen=True)
class Ask:
    """One request, in words that both sides can be told in."""

    text: str
    max_tokens: int
    style: Style = STYLES["greedy"]
    system: str | None = None
    priority: str = "normal"


@dataclass
class Sample:
    """What the producer saw of one request; `arrivals_s` grows while the answer streams."""

    sent_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)
    done_s: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def ttft_s(self) -> float:
        """From submit to the first visible token."""
        return self.arrivals_s[0] - self.sent_s

    def gaps_s(self, from_s: float = 0.0, to_s: float = float("inf")) -> list[float]:
        """The waits between tokens that overlap the given span."""
        pairs = zip(self.arrivals_s, self.arrivals_s[1:], strict=False)
        return [after - before for before, after in pairs if after > from_s and before < to_s]


class Server(Protocol):
    """A running side of the comparison."""

    name: str
    pid: int  # its processes are this one and those below it

    async def ask(self, ask: Ask, sample: Sample) -> None:
        """Send `ask`, fill `sample` while tokens arrive; cancelling the call cancels the request."""


@dataclass(frozen=True)
class Load:
    """The samples of one measurement."""

    samples: list[Sample]
    wall_s: float

    @property
    def tokens_per_s(self) -> float:
        """Output tokens of all requests over the wall time from the first submit to the last end."""
        return sum(sample.tokens for sample in self.samples) / self.wall_s

    @property
    def ttft_p50_ms(self) -> float:
        """The median time to the first token."""
        return 1000 * statistics.median(sample.ttft_s for sample in self.samples)

    @property
    def gap_p99_ms(self) -> float:
        """The 99th percentile of the waits between tokens."""
        return 1000 * percentile([gap for sample in self.samples for gap in sample.gaps_s()], 0.99)


class Prompts:
    """An endless, seeded source of texts that share no first word, hence no prefix, within some hundred texts."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._heads: list[str] = []
        self._words = WORDS.split()

    def text(self, tokens: int) -> str:
        """A text of about `tokens` tokens (within some percent, for vocabularies of English)."""
        words = [self._head(), *self._random.choices(self._words, k=max(1, round(tokens / 1.1) - 2))]
        return " ".join(words) + "."

    def asks(self, count: int, max_tokens: int, *, style: str = "greedy", priority: str = "normal") -> list[Ask]:
        """`count` requests with prompts of 40 to 160 tokens, spread evenly and shuffled."""
        lengths = [40 + 120 * place // max(1, count - 1) for place in range(count)]
        self._random.shuffle(lengths)
        return [Ask(self.text(length), max_tokens, STYLES[style], priority=priority) for length in lengths]

    def _head(self) -> str:
        if not self._heads:
            letters = "abcdefghijklmnopqrstuvwxyz"
            self._heads = [one.upper() + two for one in letters for two in letters]
            self._random.shuffle(self._heads)
        return f"{self._heads.pop()}{self._random.randrange(100, 1000)}"


async def closed_loop(server: Server, asks: Iterable[Ask], concurrency: int) -> Load:
    """`concurrency` clients that take the next request as soon as their last one has ended."""
    waiting = iter(asks)
    samples: list[Sample] = []

    async def client() -> None:
        for ask in waiting:
            samples.append(Sample())
            await server.ask(ask, samples[-1])

    started = time.perf_counter()
    async with asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(client())
    return Load(samples, time.perf_counter() - started)


async def ttft_s(server: Server, ask: Ask) -> float:
    """The TTFT of one request that is served to its end."""
    sample = Sample()
    await server.ask(ask, sample)
    return sample.ttft_s


@asynccontextmanager
async def streaming(server: Server, asks: Sequence[Ask]) -> AsyncIterator[list[Sample]]:
    """Requests in the background, cancelled at the end of the block."""
    samples = [Sample() for _ in asks]
    tasks = [asyncio.create_task(server.ask(ask, sample)) for ask, sample in zip(asks, samples, strict=True)]
    try:
        yield samples
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def until_tokens(samples: Sequence[Sample], tokens: int, *, count: int | None = None) -> None:
    """Wait until `count` (default: all) of the samples have so many tokens."""
    wanted = len(samples) if count is None else count
    async with asyncio.timeout(START_TIMEOUT_S):
        while sum(len(sample.arrivals_s) >= tokens for sample in samples) < wanted:
            await asyncio.sleep(0.005)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie (nearest rank); not a number when there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
