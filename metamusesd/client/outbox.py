"""Stage 1 · producer · put jobs into the queue: calls of one moment share one round trip, in the order of the calls.

One letter a submit. A single task sends what has gathered while the call before was under way, so that order is kept
without a lock. Redis away: the same letters are sent again after a pause; the same id makes that safe.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque

from metamusesd.errors import IdConflict, QueueFull, QueueUnavailable
from metamusesd.queues.base import Queue, Receipt, Submission

BATCH_JOBS = 256
BATCH_BYTES = 8 << 20
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0

_Letter = tuple[Submission, "asyncio.Future[Receipt]"]


def pause_s(tries: int) -> float:
    """How long to wait after the n-th failure in a row: doubling, bounded, spread."""
    return spread_s(min(FIRST_PAUSE_S * 2.0 ** min(tries, 16), LONGEST_PAUSE_S))


def spread_s(most_s: float) -> float:
    """Between half of it and all of it, so that clients do not act in step."""
    return most_s * random.uniform(0.5, 1.0)  # noqa: S311 - it keeps no secret


class Outbox:
    """Submits jobs for many callers over one queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: deque[_Letter] = deque()
        self._task: asyncio.Task[None] | None = None
        self._trouble: QueueUnavailable | None = None

    async def put(self, job: Submission, timeout_s: float) -> Receipt:
        """Submit one job. Raises QueueFull or IdConflict as the queue answered, QueueUnavailable after `timeout_s`.

        After QueueUnavailable the job may have been accepted all the same: repeat it under the same id.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Receipt] = loop.create_future()
        self._waiting.append((job, answer))
        if self._task is None:
            self._task = loop.create_task(self._send_all())
        limit = loop.call_later(timeout_s, self._give_up, answer, timeout_s)
        try:
            return await answer
        finally:
            limit.cancel()

    async def close(self) -> None:
        """Stop sending; whoever still waits gets QueueUnavailable. Legal twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        for _, answer in self._waiting:
            _refuse(answer, QueueUnavailable("the client was closed"))
        self._waiting.clear()

    def _give_up(self, answer: asyncio.Future[Receipt], timeout_s: float) -> None:
        known = self._trouble
        text = f"the queue did not accept the job within {timeout_s:g} s" + (f": {known.message}" if known else "")
        _refuse(answer, QueueUnavailable(text, trouble=known.trouble) if known else QueueUnavailable(text))

    async def _send_all(self) -> None:
        tries = 0
        while batch := self._take():
            try:
                await self._send(batch)
                tries, self._trouble = 0, None
            except QueueUnavailable as error:
                self._trouble = error
                self._waiting.extendleft(reversed(batch))
                await asyncio.sleep(pause_s(tries))
                tries += 1
        self._task = None

    async def _send(self, batch: list[_Letter]) -> None:
        """One call. Only QueueUnavailable escapes; any other error belongs to those who wait for this batch."""
        try:
            answers = await self._queue.submit([job for job, _ in batch])
        except QueueUnavailable:
            raise
        except asyncio.CancelledError:
            self._waiting.extendleft(reversed(batch))
            raise
        except Exception as error:
            for _, waiter in batch:
                _refuse(waiter, error)
            return
        for (_, waiter), answer in zip(batch, answers, strict=True):
            if isinstance(answer, QueueFull | IdConflict):
                _refuse(waiter, answer)
            elif not waiter.done():
                waiter.set_result(answer)

    def _take(self) -> list[_Letter]:
        """The next letters, without those whose sender has gone; at least one if there is any."""
        batch: list[_Letter] = []
        size = 0
        while self._waiting and len(batch) < BATCH_JOBS:
            job, answer = self._waiting[0]
            size += len(job.body)
            if batch and size > BATCH_BYTES:
                break
            self._waiting.popleft()
            if not answer.done():
                batch.append((job, answer))
        return batch


def _refuse(answer: asyncio.Future[Receipt], error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
