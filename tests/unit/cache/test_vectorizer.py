"""Batches: short against the time that askers have left, and never more than is known of the embedder."""

from __future__ import annotations

import asyncio

import pytest

from metamusesd.cache.vectorizer import KNOWN, MOST_BATCH, NoVector, Vectorizer, batch_size
from tests.unit.cache.test_semantic import ToyEmbedder, called

MS = 1_000_000


@pytest.mark.parametrize(
    ("lefts_ms", "text_ms", "size"),
    [
        ([], 5, 0),
        ([50], 5, 1),
        ([1], 5, 1),  # one goes in any case: the measured time may be wrong
        ([50, 50, 50, 50], 5, 2),  # a quarter of the time that is left
        ([50, 4, 50], 5, 1),  # whoever is pressed makes the batch short
        ([50] * 100, 0.01, MOST_BATCH),
    ],
)
def test_how_many_are_computed_in_one_go(lefts_ms, text_ms, size):
    """As many as fit into a share of what the most pressed of them has left; at least one."""
    assert batch_size([left * MS for left in lefts_ms], text_ms * MS) == size


async def test_the_pressed_go_first_and_the_patient_are_not_forgotten():
    """Texts with a deadline overtake those without; every eighth batch is the others'."""
    embedder = ToyEmbedder()
    vectorizer = Vectorizer(embedder, lambda: 0)
    vectorizer.text_ns = 100.0 * MS  # one a batch
    embedder.gate.clear()
    first = asyncio.create_task(vectorizer.vector("first", MS))
    await called(embedder, 1)
    rest = [asyncio.create_task(vectorizer.vector("patient"))]
    rest += [asyncio.create_task(vectorizer.vector(f"pressed {n}", MS)) for n in range(10)]
    await asyncio.sleep(0)
    vectorizer._measure = lambda *_: None  # type: ignore[method-assign, assignment]
    embedder.gate.set()
    await asyncio.gather(first, *rest)
    assert [texts[0] for texts in embedder.calls].index("patient") == 7
    vectorizer.close()


async def test_the_same_text_twice_in_a_batch_is_computed_once():
    """Both get its vector, and later it is known."""
    embedder = ToyEmbedder()
    vectorizer = Vectorizer(embedder)
    one, other = await asyncio.gather(vectorizer.vector("a"), vectorizer.vector("a"))
    assert one is other
    await vectorizer.vector("a")
    assert (embedder.calls, vectorizer.known_texts) == ([["a"]], 1)
    vectorizer.close()


async def test_who_wants_vectors_of_what_the_window_sees_gets_them():
    """A text that does not fit has a vector for an embed job, and none for a lookup in the same batch; it is not known
    afterwards."""
    vectorizer, long = Vectorizer(ToyEmbedder()), "x" * 2000
    reads, looked_up = await asyncio.gather(vectorizer.vectors(["a", long]), vectorizer.vector(long))
    assert looked_up is NoVector.BEYOND
    assert [(read.fits, read.cut, read.vector is not None) for read in reads] == [
        (True, False, True),
        (False, True, True),
    ]
    assert await vectorizer.vector(long) is NoVector.BEYOND
    vectorizer.close()


async def test_higher_classes_go_first_and_who_leaves_is_not_computed():
    """Of those without a deadline; a cancelled one costs nothing more."""
    embedder = ToyEmbedder()
    vectorizer = Vectorizer(embedder)
    vectorizer.text_ns = 1000.0 * MS  # one a batch
    vectorizer._measure = lambda *_: None  # type: ignore[method-assign, assignment]
    embedder.gate.clear()
    first = asyncio.create_task(vectorizer.vectors(["first"]))
    await called(embedder, 1)
    low, left, critical = (
        asyncio.create_task(vectorizer.vectors([name], priority))
        for name, priority in (("low", 0), ("left", 1), ("top", 3))
    )
    await asyncio.sleep(0)
    left.cancel()
    embedder.gate.set()
    await asyncio.gather(first, low, critical)
    assert [texts[0] for texts in embedder.calls] == ["first", "top", "low"]
    vectorizer.close()


async def test_only_so_many_texts_are_remembered():
    """The least recently used are forgotten."""
    vectorizer = Vectorizer(ToyEmbedder())
    await asyncio.gather(*(vectorizer.vector(str(n)) for n in range(KNOWN)))
    await vectorizer.vector("0")
    await vectorizer.vector("one more")
    before = vectorizer.texts
    await vectorizer.vector("0")
    assert vectorizer.texts == before
    await vectorizer.vector("1")
    assert vectorizer.texts == before + 1
    vectorizer.close()


async def test_whoever_waits_when_it_closes_is_sent_away():
    """Nobody hangs; closing twice is legal."""
    embedder = ToyEmbedder()
    vectorizer = Vectorizer(embedder)
    embedder.gate.clear()
    waiting = [asyncio.create_task(vectorizer.vector(str(n))) for n in range(3)]
    await called(embedder, 1)
    vectorizer.close()
    vectorizer.close()
    embedder.gate.set()
    assert await asyncio.gather(*waiting) == [NoVector.LATE] * 3
