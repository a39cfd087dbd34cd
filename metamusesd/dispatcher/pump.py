"""Stage 2 · dispatcher · the claim loop: one call moves what was routed, and takes what the free places want.

    markers (a connection of its own) ─┐
    a place became free, a tier waits ─┼─► wake ─► claim(routed, wants) ─► take each ─► again while there is more
    jobs were routed                  ─┘

One claim is under way at a time; what happens meanwhile rides in the next. A free place is filled only by claiming the
head of its queue. A claim that got no answer is repeated with its nonce and brings the same jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from metamusesd.dispatcher.outbox import pause_s
from metamusesd.errors import QueueUnavailable
from metamusesd.queues.base import INGRESS, Claim, Queue, Routed, Want

INGRESS_BATCH = 128
INGRESS_BYTES = 8 * 1024 * 1024  # with long bodies a batch has fewer jobs
WAIT_S = 5.0  # a lost marker costs this much


class Pump:
    """Claims for one dispatcher. `wants` says what could be taken now, `take` gets every claim."""

    def __init__(
        self, queue: Queue, owner: str, lease_ms: int, tiers: Sequence[str], wants: Callable[[], list[Want]],
        take: Callable[[Claim], None], trouble: Callable[[QueueUnavailable | None], None],
    ) -> None:  # fmt: skip
        self.claims = 0
        self._queue, self._owner, self._lease_ms, self._tiers = queue, owner, lease_ms, tuple(tiers)
        self._wants, self._take, self._trouble = wants, take, trouble
        self._routed: list[Routed] = []
        self._waiting = set(tiers)  # tiers in which jobs may wait for a place
        self._woken = asyncio.Event()
        self._woken.set()
        self._stopping = False
        self.stopped = asyncio.Event()  # no claim is under way
        self.stopped.set()
        self._calls = 0
        self._batch = INGRESS_BATCH

    def __repr__(self) -> str:
        return f"<Pump claims={self.claims} waiting={sorted(self._waiting)} routed={len(self._routed)}>"

    def wake(self) -> None:
        """There may be something to claim."""
        self._woken.set()

    def freed(self, tier: str) -> None:
        """A place in this tier became free."""
        if tier in self._waiting:
            self._woken.set()

    def forward(self, routed: Routed) -> None:
        """An analysed job: into its tiers' queues with the next call. Only `take` may call it, inside a round."""
        self._routed.append(routed)

    def stop(self) -> None:
        """Claim no more; `run` returns once the call under way is answered and all is forwarded."""
        self._stopping = True
        self._woken.set()

    async def run(self) -> None:
        """Claim until stopped."""
        self.stopped.clear()
        while not self._stopping or self._routed:
            await self._woken.wait()
            self._woken.clear()
            while await self._round():
                pass
        self.stopped.set()

    async def watch(self) -> None:
        """Wait for markers until cancelled."""
        tries = 0
        while True:
            try:
                if await self._queue.wait([INGRESS, *self._tiers], WAIT_S):
                    self._waiting.update(self._tiers)
                self._woken.set()
                tries = 0
            except QueueUnavailable as error:
                self._trouble(error)
                await asyncio.sleep(pause_s(tries))
                tries += 1

    async def _round(self) -> bool:
        """One call. True: there is more to do at once."""
        routed, self._routed = self._routed, []
        wants = [] if self._stopping else [Want(INGRESS, self._batch), *self._wants()]
        if not wants and not routed:
            return False
        claims = await self._claim(wants, routed)
        self.claims += len(claims)
        full = self._learn(wants, routed, claims)
        for claim in claims:
            self._take(claim)
        return (full or bool(self._routed)) and not (self._stopping and not self._routed)

    async def _claim(self, wants: list[Want], routed: list[Routed]) -> list[Claim]:
        """The same call until it is answered."""
        self._calls += 1
        nonce, tries = f"{self._owner.rpartition(':')[2]}-{self._calls}", 0
        while True:
            try:
                claims = await self._queue.claim(self._owner, nonce, wants, routed, lease_ms=self._lease_ms)
            except QueueUnavailable as error:
                self._trouble(error)
                await asyncio.sleep(pause_s(tries))
                tries += 1
                continue
            if tries:
                self._trouble(None)
            return claims

    def _learn(self, wants: Iterable[Want], routed: Iterable[Routed], claims: Sequence[Claim]) -> bool:
        """Remember where jobs may wait. True: ingress held more than was asked for."""
        got: dict[str, int] = {}
        for claim in claims:
            got[claim.queue] = got.get(claim.queue, 0) + 1
        self._waiting.update(tier for job in routed for tier in job.tiers)
        asked: dict[str, int] = {}
        for want in wants:
            asked[want.queue] = asked.get(want.queue, 0) + want.count
        for want in wants:
            if want.floor == 0 and got.get(want.queue, 0) < asked[want.queue]:
                self._waiting.discard(want.queue)
        full = got.get(INGRESS, 0) >= self._batch
        if got.get(INGRESS):
            mean = sum(len(claim.body) for claim in claims) // len(claims) + 1
            self._batch = max(1, min(INGRESS_BATCH, INGRESS_BYTES // mean))
        return full
