"""Stage 10 · clients · who is in the queue now: every job that has not ended, the oldest first. For operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class LiveJob:
    """A job that has not ended. All times are milliseconds of the server's clock."""

    id: str
    state: str  # queued: not routed yet, ready, running, following: equal to one under way, delayed: before a retry
    priority: int
    tenant: str
    submitted_ms: int
    queue: str = ""  # where it was claimed, if it is running; INGRESS: it is being routed
    tiers: tuple[str, ...] = ()  # that may serve it; none: not routed yet
    claimed_ms: int = 0  # 0: not running
    owner: str = ""  # the dispatcher that holds it: <instance>:<nonce>
    attempt: int = 1
    crashes: int = 0


class Census(Protocol):
    """A part of base.Queue."""

    async def live(self, skip: int, count: int) -> tuple[int, list[LiveJob]]:
        """The server's clock, and up to `count` jobs by age without the `skip` oldest. One that has just ended is left
        out; ask again from `skip + count` until `skip` is past the last one, see `living`."""

    async def living(self) -> int:
        """How many have not ended."""
