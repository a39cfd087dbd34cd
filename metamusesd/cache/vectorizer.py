"""Stage 4 · vectors process · texts to vectors: one text at a time is computed, and many wait with their deadlines.

    vector ─► known? (the last KNOWN texts) ─► wait ─► batch ─► one call of the embedder, on the one thread ─► vector

The thread takes what waits in batches that are short against the time that their askers have left: a batch is answered
as a whole, and whoever waits behind it needs time as well. Texts with a deadline go before those without one.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metamusesd.cache.base import Embedder
from metamusesd.errors import EmbedderFailed

if TYPE_CHECKING:
    from metamusesd.cache.base import Vector

KNOWN = 4096
CLASSES = 4
MOST_BATCH = 16
SHARE = 4  # a batch may take this part of the time that its most pressed asker has left
PATIENT_NS = 100_000_000  # what an asker without a deadline has left
PATIENT_TURN = 8  # of so many batches one is theirs, whoever else waits
FIRST_TEXT_NS = 5_000_000  # until it is measured
FOLLOW = 0.1  # how fast the measured time follows


@dataclass(frozen=True, slots=True)
class Read:
    """What the embedder made of one text."""

    vector: Vector | None  # None: nobody wanted it but whole, and it does not fit
    fits: bool
    cut: bool


class NoVector(enum.Enum):
    """Why a text has no vector."""

    BEYOND = "beyond"  # the embedder would not see all of it
    LATE = "late"  # its asker has stopped waiting


@dataclass(slots=True)
class _Wish:
    """One text that waits for its vector."""

    text: str
    until_ns: int  # 0: no deadline
    since_ns: int
    done: asyncio.Future[Read | NoVector]
    priority: int = 1  # the class of who has no deadline
    whole: bool = True  # without all of it in sight it is not computed


class Vectorizer:
    """The embedder behind one thread. Call everything on the event loop; `close` it."""

    def __init__(self, embedder: Embedder, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.identity, self.window = embedder.identity, embedder.window
        self.text_ns = float(FIRST_TEXT_NS)
        self.texts = self.known_texts = self.batches = 0  # computed, found among the known, calls of the embedder
        self._embedder, self._now_ns = embedder, now_ns
        self._known: OrderedDict[str, Vector] = OrderedDict()
        self._pressed: deque[_Wish] = deque()
        self._patient: list[deque[_Wish]] = [deque() for _ in range(CLASSES)]  # by class, low first
        self._thread = ThreadPoolExecutor(1, "embedder")
        self._work: asyncio.Task[None] | None = None
        self._batch: list[_Wish] = []
        self._turns = 0

    @property
    def oldest_ns(self) -> int:
        """Since when the oldest of those waits that have no vector yet; 0: nobody does."""
        firsts = (line[0].since_ns for line in (self._batch, self._pressed, *self._patient) if line)
        return min(firsts, default=0)

    async def vector(self, text: str, until_ns: int = 0) -> Vector | NoVector:
        """Its vector, or why there is none. `until_ns` (monotonic): after it the text is not computed any more. Raises
        EmbedderFailed."""
        if (known := self._known.get(text)) is not None:
            self._known.move_to_end(text)
            self.known_texts += 1
            return known
        read = await self._wished(_Wish(text, until_ns, self._now_ns(), asyncio.get_running_loop().create_future()))
        if isinstance(read, NoVector):
            return read
        return NoVector.BEYOND if read.vector is None or not read.fits else read.vector

    async def vectors(self, texts: Sequence[str], priority: int = 1) -> list[Read | NoVector]:
        """Of each, what the window sees of it; they go behind everybody who has a deadline, and behind higher classes.
        Raises EmbedderFailed."""
        loop = asyncio.get_running_loop()
        wishes = [_Wish(text, 0, self._now_ns(), loop.create_future(), priority, whole=False) for text in texts]
        return await asyncio.gather(*(self._wished(wish) for wish in wishes))

    async def _wished(self, wish: _Wish) -> Read | NoVector:
        line = self._patient[max(0, min(CLASSES - 1, wish.priority))]
        (self._pressed if wish.until_ns else line).append(wish)
        if self._work is None:
            self._work = asyncio.create_task(self._run(), name="embed")
        return await wish.done

    def close(self) -> None:
        """No more texts: who waits is told that it is too late. A call under way ends by itself. Legal twice."""
        if self._work is not None:
            self._work.cancel()
        for wish in (*self._batch, *self._pressed, *itertools.chain(*self._patient)):
            if not wish.done.done():
                wish.done.set_result(NoVector.LATE)
        self._batch = []
        self._pressed.clear()
        for line in self._patient:
            line.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        """Until nobody waits."""
        loop = asyncio.get_running_loop()
        try:
            while self._pressed or any(self._patient):
                self._batch = self._take()
                texts: dict[str, bool] = {}  # each once, and whether it is wanted but whole
                for wish in self._batch:
                    texts[wish.text] = wish.whole and texts.get(wish.text, True)
                if texts:
                    self._deliver(await loop.run_in_executor(self._thread, self._compute, texts))
        finally:
            self._work = None

    def _take(self) -> list[_Wish]:
        """Who is computed next; who is too late is told so."""
        now_ns = self._now_ns()
        for wish in [wish for wish in self._pressed if wish.until_ns <= now_ns or wish.done.done()]:
            self._pressed.remove(wish)
            if not wish.done.done():
                wish.done.set_result(NoVector.LATE)
        self._turns += 1
        for line in self._patient:
            while line and line[0].done.done():  # its asker has left
                line.popleft()
        patient = next((line for line in reversed(self._patient) if line), self._patient[0])
        patient_ones_turn = patient and self._turns % PATIENT_TURN == 0
        waiting = self._pressed if self._pressed and not patient_ones_turn else patient
        lefts_ns = [wish.until_ns - now_ns if wish.until_ns else PATIENT_NS for wish in waiting]
        return [waiting.popleft() for _ in range(batch_size(lefts_ns, self.text_ns))]

    def _compute(self, texts: Mapping[str, bool]) -> dict[str, Read] | EmbedderFailed:
        """On the thread. A failure is an answer: the thread goes on."""
        embedder, began_ns = self._embedder, time.monotonic_ns()
        try:
            fits = {text: embedder.fits(text) for text in texts}
            seen = [text for text, whole in texts.items() if fits[text] or not whole]
            vectors = dict(zip(seen, embedder.embed(seen) if seen else (), strict=True))
            cut = {text for text in seen if not fits[text] and embedder.cuts(text)}
        except EmbedderFailed as error:
            return error
        except Exception as error:
            return EmbedderFailed(f"the embedder failed: {type(error).__name__}: {error}")
        if seen:
            self._measure(time.monotonic_ns() - began_ns, len(seen))
        return {text: Read(vectors.get(text), fits[text], text in cut) for text in texts}

    def _measure(self, took_ns: int, texts: int) -> None:
        self.texts += texts
        self.batches += 1
        self.text_ns += FOLLOW * (took_ns / texts - self.text_ns)

    def _deliver(self, read: dict[str, Read] | EmbedderFailed) -> None:
        batch, self._batch = self._batch, []
        if isinstance(read, dict):
            for text, each in read.items():
                if each.fits and each.vector is not None:
                    self._known[text] = each.vector
            while len(self._known) > KNOWN:
                self._known.popitem(last=False)
        for wish in batch:
            if wish.done.done():
                continue  # its asker was cancelled
            if isinstance(read, EmbedderFailed):
                wish.done.set_exception(read)
            else:
                wish.done.set_result(read[wish.text])


def batch_size(lefts_ns: Sequence[int], text_ns: float) -> int:
    """How many of those that wait, from the first on, are computed in one go: at least one, if there is one.
    `lefts_ns`: the time that each has left; `text_ns`: what a text takes."""
    size, least_ns = 0, float("inf")
    for left_ns in lefts_ns[:MOST_BATCH]:
        least_ns = min(least_ns, left_ns)
        if size and (size + 1) * text_ns > least_ns / SHARE:
            break
        size += 1
    return size
