"""Stages 1, 9, 10 · tests · what can be seen of a memory queue: the reads of redis_views."""

from __future__ import annotations

from collections.abc import Sequence

from metamusesd.queues.base import Depth, JobEvent, JobView
from metamusesd.queues.memory_store import Store


class MemoryViews:
    """The reading half of MemoryQueue."""

    _store: Store

    async def view(self, id: str) -> JobView | None:
        """See base.Queue."""
        job = self._store.get(id)
        if job is None:
            return None
        sent = job.submission
        return JobView(
            id, job.state, sent.priority, job.attempt, job.crashes, sent.tenant, job.submitted_ms, job.route, job.owner,
            job.body,
        )  # fmt: skip

    async def result(self, id: str) -> bytes | None:
        """See base.Queue."""
        job = self._store.get(id)
        return job.result if job else None

    async def events(self, id: str, after: str = "0", block_ms: int = 0) -> list[JobEvent]:
        """See base.Queue."""
        return await self._store.read(f"events:{id}", after, block_ms)

    async def mail(self, name: str, after: str = "0", block_ms: int = 0) -> list[JobEvent]:
        """See base.Queue."""
        return await self._store.read(f"mail:{name}", after, block_ms)

    async def depths(self, queues: Sequence[str]) -> list[Depth]:
        """See base.Queue."""
        return [self._store.depth(queue) for queue in queues]
