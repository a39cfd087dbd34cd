"""How long jobs are kept in a worker that shows no progress."""

from __future__ import annotations

import time

import pytest

from tests.unit.dispatcher.stage import Stage

S_NS = 1_000_000_000


@pytest.mark.parametrize(
    ("patience_ms", "idle_s", "kept"), [(60_000, 124, True), (60_000, 126, False), (0, 6, True), (0, 8, False)]
)
async def test_as_long_as_it_may_still_be_killed(stage: Stage, patience_ms: int, idle_s: int, kept: bool) -> None:
    """The supervisor names its patience on the board; leases are renewed until it should have killed long ago."""
    worker = await stage.worker()
    await stage.submit()
    await worker.orders()
    (link,) = stage.dispatcher.fleet.ready["fast"]
    stage.board.slots[0].write(patience_ms=patience_ms)
    stage.board.workers[0].write(beat_ns=time.monotonic_ns())
    now_ns = stage.dispatcher.fleet.progress_ns(link) + idle_s * S_NS
    assert stage.dispatcher.fleet.gets_on(link, now_ns, guess_ms=1000) is kept
