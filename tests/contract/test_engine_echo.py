"""What the echo engine promises beyond the contract of all engines: classes inside a full batch."""

from __future__ import annotations

from metamusesd.engines.base import EngineSpec
from metamusesd.engines.choice import make_engine
from metamusesd.job import Priority
from tests.contract.engine_rig import Run


def test_an_aged_sequence_is_not_pre_empted() -> None:
    """It goes on beside a critical one, and one that is not aged stands still."""
    engine = make_engine(EngineSpec("echo", "echo", slots=2, reserve_slots=1, context=128))
    run = Run(engine)
    run.admit("one two", Priority.LOW)
    aged = run.admit("three four", Priority.LOW, aged=True)
    critical = run.admit("five six", Priority.CRITICAL)
    run.step()
    assert {event.handle for event in run.events} == {aged, critical}
