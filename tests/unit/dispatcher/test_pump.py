"""The claim loop: what it asks for, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from metamusesd.dispatcher.pump import Pump
from metamusesd.queues.base import Claim, Routed, Submission, Want
from metamusesd.queues.memory import MemoryQueue


class SlowReply(MemoryQueue):
    """Its first claim is answered only when `reply` is set: it was long done, and others come in meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.claimed, self.reply = asyncio.Event(), asyncio.Event()
        self.waits = 0

    async def claim(
        self, owner: str, nonce: str, wants: Sequence[Want], routed: Sequence[Routed] = (), *, lease_ms: int
    ) -> list[Claim]:
        claims = await super().claim(owner, nonce, wants, routed, lease_ms=lease_ms)
        if not self.claimed.is_set():
            self.claimed.set()
            await self.reply.wait()
        return claims

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        found = await super().wait(queues, timeout_s)
        self.waits += found
        return found


async def test_a_marker_that_overtakes_a_claims_answer_is_not_forgotten() -> None:
    """A job arrives after a claim has looked, its marker before the claim's answer: it is claimed at once, and not when
    the wait for markers ends."""
    queue = SlowReply()
    await queue.configure()
    taken: list[str] = []
    came = asyncio.Event()

    def take(claim: Claim) -> None:
        taken.append(claim.id)
        came.set()

    pump = Pump(queue, "host-a:1", 5000, ["fast"], lambda: [Want("fast", 1)], take, lambda trouble: None)
    loops = [asyncio.create_task(pump.run()), asyncio.create_task(pump.watch())]
    await queue.claimed.wait()
    await queue.submit([Submission("late", b"{}", "d", 1)])
    async with asyncio.timeout(5):
        while not queue.waits:
            await asyncio.sleep(0)
    queue.reply.set()
    async with asyncio.timeout(1):
        await came.wait()
    assert taken == ["late"]
    pump.stop()
    for loop in loops:
        loop.cancel()
    await asyncio.gather(*loops, return_exceptions=True)
