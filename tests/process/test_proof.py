"""The proof of docs/faults.md in short: random faults beside producers, then the oracle; `make faults` runs it long."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.faults.proof import Verdict, explain, prove

SECONDS = 40.0


def sound(verdict: Verdict) -> None:
    """Nothing was broken, and there was something to look at."""
    assert not verdict.violations, "\n".join(explain(verdict))
    shutil.rmtree(verdict.folder, ignore_errors=True)
    assert verdict.pairs and verdict.history.faults
    states = {facts.hash.get("state") for facts in verdict.facts.values()}
    assert {"done", "failed", "cancelled", "expired", "dead"} <= states


@pytest.mark.slow_fault
@pytest.mark.timeout(400)
async def test_nothing_is_lost() -> None:
    """With `appendfsync always` every promise is kept, and no job is indeterminate."""
    verdict = await prove(SECONDS, 11, "always")
    sound(verdict)
    assert not verdict.unsure


@pytest.mark.slow_fault
@pytest.mark.timeout(400)
async def test_what_everysec_may_lose_is_told_apart() -> None:
    """With `everysec` nothing is broken outside of the moments around a death of Redis."""
    sound(await prove(SECONDS, 12, "everysec"))
