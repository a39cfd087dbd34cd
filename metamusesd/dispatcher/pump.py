"""Stage 2 · dispatcher · the claim loop: one call moves what was routed, and takes what the free places want.

    markers (a connection a queue) ────┐
    a place became free, a tier waits ─┼─► wake ─► claim(routed, wants) ─► take each ─► again while there is more
    jobs were routed                  ─┘

One claim is under way at a time; what happens meanwhile rides in the next. A free place is filled only by claiming the
head of its queue. A claim that got no answer is repeated with its nonce and brings the same jobs.

A marker wakes one host. So a tier's marker is waited for only while there is room, and one that was popped without
room for everybody is armed again, for the host that has it: a Want of no jobs does that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from metamusesd.dispatcher.outbox import pause_s
from metamusesd.dispatcher.scheduler import standing
from metamusesd.errors import QueueError, QueueFault
from metamusesd.queues.base import INGRESS, Claim, Queue, Routed, Want

INGRESS_BATCH = 128
INGRESS_BITE = 32  # while jobs wait for places: a place that becomes free must not wait behind a long call
INGRESS_BYTES = 8 * 1024 * 1024  # with long bodies a batch has fewer jobs
WAIT_S = 5.0  # a lost marker costs this much
YIELD_S = 0.05  # after a marker that may be another host's: its turn to pop it

Heard = Callable[[Sequence[Routed], Sequence[Claim], Collection[str]], None]


class Pump:
    """Claims for one dispatcher. `wants` says what could be taken now, `take` gets every claim, `heard` what each call
    moved and brought, and the tiers that still wait; `shared` says whether other hosts serve a tier, too."""

    def __init__(
        self, queue: Queue, owner: str, lease_ms: int, tiers: Sequence[str], wants: Callable[[], list[Want]],
        take: Callable[[Claim], None], trouble: Callable[[QueueError | None], None],
        heard: Heard = lambda routed, claims, waiting: None, shared: Callable[[str], bool] = lambda tier: False,
    ) -> None:  # fmt: skip
        self.claims = 0
        self._queue, self._owner, self._lease_ms, self._tiers = queue, owner, lease_ms, tuple(tiers)
        self._wants, self._take, self._trouble, self._heard, self._shared = wants, take, trouble, heard, shared
        self._routed: list[Routed] = []
        self._waiting = set(tiers)  # tiers in which jobs may wait for a place
        self._freed = {tier: asyncio.Event() for tier in tiers}
        self._popped: set[str] = set()  # markers that were taken from other hosts, perhaps
        self._news: set[str] = set()  # queues of which a marker came while a claim was under way: see _learn
        self._woken = asyncio.Event()
        self._woken.set()
        self._stopping = False
        self.stopped = asyncio.Event()  # no claim is under way
        self.stopped.set()
        self._ingress = True  # jobs may wait there
        self._coming: list[Claim] = []  # taken a moment ago: they have not picked their workers yet
        self._calls = 0
        self._batch = INGRESS_BATCH

    def __repr__(self) -> str:
        return f"<Pump claims={self.claims} waiting={sorted(self._waiting)} routed={len(self._routed)}>"

    def wake(self) -> None:
        """There may be something to claim."""
        self._woken.set()

    def freed(self, tier: str) -> None:
        """A place in this tier became free."""
        if tier in self._freed:
            self._freed[tier].set()
        if tier in self._waiting:
            self._woken.set()

    def may_wait(self, tier: str) -> bool:
        """Jobs may wait for a place in this tier. Of tiers of other hosts nothing is known here: they may."""
        if tier in self._waiting or tier not in self._freed:
            return True
        return any(claim.queue == tier for claim in self._coming)  # claimed a moment ago, and not placed yet, perhaps

    def forward(self, routed: Routed) -> None:
        """An analysed job: into its tiers' queues with the next call. Outside of `take`, `wake` must follow."""
        self._routed.append(routed)

    def stop(self) -> None:
        """Claim no more; `run` returns once the call under way is answered and all is forwarded."""
        self._stopping = True
        self._woken.set()
        for freed in self._freed.values():
            freed.set()

    async def run(self) -> None:
        """Claim until stopped."""
        self.stopped.clear()
        while not self._stopping or self._routed:
            if not self._woken.is_set():
                self._coming = []  # while this waits, they pick
            await self._woken.wait()
            self._woken.clear()
            while await self._round():
                pass
        self.stopped.set()

    async def watch(self) -> None:
        """Wait for markers until stopped."""
        async with asyncio.TaskGroup() as group:
            for queue in (INGRESS, *self._tiers):
                group.create_task(self._listen(queue))

    async def _listen(self, queue: str) -> None:
        tries = 0
        while not self._stopping:
            await self._room(queue)
            try:
                marked = await self._queue.wait([queue], WAIT_S)
            except QueueError as error:
                self._trouble(error)
                await asyncio.sleep(pause_s(tries))
                tries += 1
                continue
            tries = 0
            self._may_hold(queue)
            if marked:
                await self._marked(queue)
            self._woken.set()

    def _may_hold(self, queue: str) -> None:
        """There may be jobs: a marker says so, or it is time to look."""
        self._news.add(queue)
        if queue == INGRESS:
            self._ingress = True
        else:
            self._waiting.add(queue)

    async def _marked(self, queue: str) -> None:
        """A marker was popped here."""
        self._woken.set()
        if self._stopping:  # it was meant for the other hosts
            await self.stopped.wait()
            await self._claim([Want(queue, 0)], [])
        elif self._shared(queue):
            self._popped.add(queue)
        if queue != INGRESS and all(want.queue != queue or want.floor for want in self._wants()):
            await asyncio.sleep(YIELD_S)  # each claim that leaves somebody behind arms it again

    async def _room(self, queue: str) -> None:
        """Returns when a job of this queue could be taken, if only one of a higher class."""
        while queue != INGRESS and not self._stopping and all(want.queue != queue for want in self._wants()):
            self._freed[queue].clear()
            await self._freed[queue].wait()

    def _asked(self) -> tuple[list[Want], bool]:
        """What the next call wants; whether places were withheld for those that are coming."""
        if self._stopping:
            return [], False
        may_wait = self._waiting.union(*(job.tiers for job in self._routed))
        free = [want for want in self._wants() if want.queue in may_wait]
        wants = [left for want in free if (left := self._less(want)).count] if self._coming else free
        withheld = wants != free
        if self._ingress:
            wants = [Want(INGRESS, min(self._batch, INGRESS_BITE) if self._waiting else self._batch), *wants]
        return wants + self._rearmed(wants) if self._popped else wants, withheld

    def _less(self, want: Want) -> Want:
        """Without the places of those that are coming: the call need not wait until they have picked them."""
        coming = sum(claim.queue == want.queue and standing(claim) >= want.floor for claim in self._coming)
        return replace(want, count=max(0, want.count - coming)) if coming else want

    def _rearmed(self, wants: Sequence[Want]) -> list[Want]:
        """Wants of no jobs: they arm the markers that were popped here and are of no use here."""
        popped, self._popped = self._popped, set()
        return [Want(queue, 0) for queue in popped - {want.queue for want in wants if want.floor == 0}]

    async def _round(self) -> bool:
        """One call. True: there is more to do at once."""
        wants, withheld = self._asked()
        routed, self._routed = self._routed, []
        if not wants and not routed:
            if withheld:
                await asyncio.sleep(0)
            self._coming = []
            return withheld
        self._news.clear()
        claims = await self._claim(wants, routed)
        self.claims += len(claims)
        full = self._learn(wants, routed, claims)
        self._heard(routed, claims, self._waiting)
        for claim in claims:
            self._take(claim)
        self._coming = [claim for claim in claims if claim.queue != INGRESS]
        more = full or withheld or bool(self._routed)
        return more and not (self._stopping and not self._routed)

    async def _claim(self, wants: list[Want], routed: list[Routed]) -> list[Claim]:
        """The same call until it is answered. A broken key stops only what needs it."""
        self._calls += 1
        nonce, tries = f"{self._owner.rpartition(':')[2]}-{self._calls}", 0
        while True:
            try:
                claims = await self._queue.claim(self._owner, nonce, wants, routed, lease_ms=self._lease_ms)
            except QueueFault as error:
                self._trouble(error)
                return await self._claim_apart(wants, routed)
            except QueueError as error:
                self._trouble(error)
                await asyncio.sleep(pause_s(tries))
                tries += 1
                continue
            if tries:
                self._trouble(None)
            return claims

    async def _claim_apart(self, wants: list[Want], routed: list[Routed]) -> list[Claim]:
        """One call a part; a part that cannot be done is left out, and a job that cannot be moved is reaped later."""
        parts: list[tuple[list[Want], list[Routed]]] = [([], [job]) for job in routed]
        parts += [([want], []) for want in wants]
        if len(parts) < 2:
            return []
        return [claim for part in parts for claim in await self._claim(*part)]

    def _learn(self, wants: Iterable[Want], routed: Iterable[Routed], claims: Sequence[Claim]) -> bool:
        """Remember where jobs may wait. True: ingress held more than was asked for. DANGER: a job that came after the
        claim's turn in Redis may have its marker popped before the claim's answer is here; that answer knows nothing of
        it, and would have it wait for WAIT_S."""
        got: dict[str, int] = {}
        for claim in claims:
            got[claim.queue] = got.get(claim.queue, 0) + 1
        self._waiting.update(tier for job in routed for tier in job.tiers if tier in self._freed)
        for want in wants:
            if want.floor == 0 and got.get(want.queue, 0) < want.count and want.queue not in self._news:
                self._waiting.discard(want.queue)
        full = False
        for want in wants:
            if want.queue == INGRESS:
                full = got.get(INGRESS, 0) >= want.count
                self._ingress = full or INGRESS in self._news
        if got.get(INGRESS):
            mean = sum(len(claim.body) for claim in claims) // len(claims) + 1
            self._batch = max(1, min(INGRESS_BATCH, INGRESS_BYTES // mean))
        return full
