"""Stage 3 · dispatcher · a tier that nobody serves may be that of a host that has just come: ask before refusing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from metamusesd.dispatcher.hosts import Hosts
from metamusesd.errors import QueueError
from metamusesd.queues.base import Claim, Queue


class Inquiry:
    """One question at a time, for all jobs that wait for its answer; then `again` looks at each of them once more."""

    def __init__(self, queue: Queue, hosts: Hosts, again: Callable[[Claim], None]) -> None:
        self._queue, self._hosts, self._again = queue, hosts, again
        self._claims: list[Claim] = []
        self._asking: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Inquiry {len(self._claims)} jobs>"

    def put(self, claim: Claim) -> None:
        """None of the hosts that are known serves it."""
        self._claims.append(claim)
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())

    async def answered(self) -> None:
        """Nobody waits for an answer any more."""
        if self._asking is not None:
            await asyncio.wait([self._asking])

    async def _ask(self) -> None:
        while self._claims:
            claims, self._claims = self._claims, []
            with contextlib.suppress(QueueError):  # what was known holds; the survey reports the trouble
                self._hosts.update(await self._queue.hosts())
            for claim in claims:
                self._again(claim)
        self._asking = None
