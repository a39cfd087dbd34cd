"""Stages 1 and 9 · producer · submit jobs, follow them, and get their results.

    async with Client.from_env() as client:
        result = await client.execute(InferenceRequest(user_query="What is a muse?"))

At least once: killing any process of the daemon loses no job. Redis itself may lose the last moments before its own
crash; whoever waits here for a job that this client submitted then finds it gone, and it is submitted again under the
same id, RESUBMITS times at most.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from metamusesd import config
from metamusesd.client.feed import Ending, Feed
from metamusesd.client.inbox import Inbox
from metamusesd.client.kept import Kept
from metamusesd.client.outbox import Outbox
from metamusesd.errors import (
    DeadlineUnmeetable,
    JobCancelled,
    JobDead,
    JobError,
    JobExpired,
    JobFailed,
    JobGone,
    QueueTimeout,
    WaitTimeout,
)
from metamusesd.job import TERMINAL, InferenceRequest, Result, body_digest, encode_request, parse_request
from metamusesd.queues.answers import Recall, Recalled
from metamusesd.queues.base import Depth, Host, JobEvent, JobView, Position, Queue, Receipt, Submission
from metamusesd.queues.census import LiveJob
from metamusesd.tracing import current_traceparent

SUBMIT_TIMEOUT_S = 30.0

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}", re.ASCII)

_T = TypeVar("_T")

Request = InferenceRequest | dict[str, Any] | str | bytes

_ERRORS: dict[str, type[JobError]] = {
    "cancelled": JobCancelled,
    "expired": JobExpired,
    "dead": JobDead,
    "deadline_unmeetable": DeadlineUnmeetable,
    "queue_timeout": QueueTimeout,
}


class Client:
    """A producer. Safe for any number of concurrent calls of one event loop; all waits share one connection."""

    def __init__(self, url: str | None = None, prefix: str | None = None, queue: Queue | None = None) -> None:
        """`queue` replaces the connection that `url` and `prefix` describe; None of them: the built-in defaults."""
        self._queue = queue or _connect(url, prefix)
        self._kept = Kept(time.monotonic)
        self._outbox = Outbox(self._queue)
        self._inbox = Inbox(self._queue, self._kept.forget)

    @classmethod
    def from_env(cls, path: str | Path | None = None, environ: Mapping[str, str] | None = None) -> Self:
        """A client for the configured queue: the file, overridden by REDIS_URL, REDIS_QUEUE_PREFIX and the others."""
        return cls.from_config(config.load(path, environ))

    @classmethod
    def from_config(cls, loaded: config.Config) -> Self:
        """A client for the queue of a configuration that is loaded already. Its bounds are the daemon's business."""
        return cls(loaded.redis_url, loaded.redis.prefix)

    async def __aenter__(self) -> Self:
        await self._queue.open()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End all waits with QueueUnavailable and disconnect. Jobs go on. Legal twice."""
        await self._outbox.close()
        await self._inbox.close()
        await self._queue.close()

    async def submit(self, request: Request, timeout_s: float = SUBMIT_TIMEOUT_S, *, watch: bool = True) -> Receipt:
        """Put a job into the queue. `watch=False`: nobody will stream or wait for it here, so write it no mail.

        Raises InvalidRequest, QueueFull, IdConflict; QueueUnavailable when Redis did not answer within `timeout_s`,
        and then the job may be in all the same: repeat it under the same id.
        """
        return await self._put(self._submission(parse_request(request), watch=watch), timeout_s)

    async def stream(self, id: str) -> AsyncGenerator[JobEvent]:
        """All events of a job, also the past ones, each once and in order; ends after the terminal one.

        `queued` events say its position while it waits. After `restarted` text begins again at offset 0. The texts
        since then make up the content of a job that is `done`, even if it was answered without tokens. Raises JobGone.
        """
        _check_id(id)
        told = False
        while True:
            try:
                async with aclosing(self._events(id)) as events:
                    async for event in events:
                        told = True
                        yield event
                return
            except JobGone:
                if not await self._put_again(id):
                    raise
            if told:
                yield JobEvent("", id, "restarted", data=b"lost")

    async def wait(self, id: str, timeout_s: float | None = None) -> Result:
        """The result of a job, however it ended: look at its `state`. Raises JobGone and WaitTimeout."""
        _check_id(id)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        return await self._end(id)
                    except JobGone:
                        if not await self._put_again(id):
                            raise
        except TimeoutError:
            raise WaitTimeout(id=id) from None

    async def execute(self, request: Request, timeout_s: float | None = None) -> Result:
        """Submit, wait, and return the result of a job that is done; no tokens travel meanwhile.

        Raises what `submit` raises; JobFailed, JobCancelled, JobExpired, DeadlineUnmeetable, QueueTimeout, JobDead
        with the error dict; JobGone when Redis lost the job again and again; WaitTimeout after `timeout_s`. Neither a
        timeout nor cancelling this call ends the job.
        """
        job = self._submission(parse_request(request), stream=False)
        end_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                result = await self._run(job, end_s)
                break
            except JobGone:
                if not (again := self._kept.again(job.id)):
                    raise
                job = again
        self._kept.forget(job.id)
        if result.state != "done":
            raise _error(result)
        return result

    async def embed(
        self, texts: Sequence[str], timeout_s: float | None = None, *, truncate: bool = False
    ) -> list[list[float]]:
        """The vector of each text, of length 1, from the daemon's embedder. 1 to 128 texts. Raises as `execute` does;
        JobFailed with context_overflow when a text is longer than the window and `truncate` is not set."""
        body = {"kind": "embed", "input": list(texts), "truncate": "oldest" if truncate else "never"}
        return (await self.execute(body, timeout_s)).embeddings or []

    async def cancel(self, id: str) -> str:
        """Cancel a job. Returns its state then: `cancelled`, how it had ended before, or `gone`."""
        if not _ID.fullmatch(id):
            return "gone"
        self._kept.forget(id)
        return await self._queue.cancel(id)

    async def status(self, id: str) -> JobView:
        """How a job stands. Raises JobGone."""
        _check_id(id)
        return _there(id, await self._queue.view(id))

    async def history(self, id: str) -> list[JobEvent]:
        """Its events so far, as far as its stream goes back; none when it wants no stream. Does not wait."""
        return await self._queue.events(id)

    async def position(self, id: str) -> Position:
        """Where a job stands and when it may start, computed now. Raises JobGone."""
        _check_id(id)
        return _there(id, await self._queue.position(id))

    async def depths(self, queues: Sequence[str]) -> list[Depth]:
        """How many wait in each queue, by class."""
        return await self._queue.depths(queues)

    async def hosts(self) -> list[Host]:
        """The live hosts, what each serves and how fast."""
        return await self._queue.hosts()

    async def living(self) -> int:
        """How many jobs have not ended."""
        return await self._queue.living()

    async def live(self, skip: int = 0, count: int = 1000) -> tuple[int, list[LiveJob]]:
        """The server's clock, and up to `count` jobs that have not ended, by age, without the `skip` oldest."""
        return await self._queue.live(skip, count)

    async def dead(self, count: int = 100) -> list[JobView]:
        """The quarantined jobs, the newest first, with the evidence of their crashes."""
        return await self._queue.dead(count)

    async def revive(self, id: str) -> str:
        """Give a dead job another life. Its state then, `gone`, or what it is instead of dead."""
        return await self._queue.revive(id) if _ID.fullmatch(id) else "gone"

    async def drop(self, id: str) -> str:
        """Forget a dead job: `dropped`, `gone`, or what it is instead of dead."""
        return await self._queue.drop(id) if _ID.fullmatch(id) else "gone"

    async def complain(self, id: str) -> str:
        """The answer that this job got from a cache was wrong: `noted`; it came from none: `not_cached`; or `gone`."""
        return await self._queue.complain(id) if _ID.fullmatch(id) else "gone"

    async def recall(self, keys: Sequence[str]) -> Recalled:
        """The answer of the exact cache under the first of these keys that has one (metamusesd.cache.partition)."""
        return (await self._queue.recall([Recall("", tuple(keys))]))[0]

    async def forget(self, *, tenant: str = "", muse: str = "", model: str = "", tag: str = "") -> int:
        """Drop the answers of the exact cache that have all these labels; how many there were."""
        return await self._queue.forget(tenant=tenant, muse=muse, model=model, tag=tag)

    async def kept(self) -> tuple[int, int]:
        """Answers in the exact cache, and their bytes."""
        return await self._queue.kept()

    async def _put(self, job: Submission, timeout_s: float) -> Receipt:
        """Submit; if it names our mailbox, from now on what the mailbox says of it counts."""
        ours = job.reply_to == self._inbox.name
        if ours:
            self._inbox.own(job.id)
        try:
            receipt = await self._outbox.put(job, timeout_s)
        except BaseException:
            if ours:
                self._inbox.disown(job.id)
            raise
        if ours and receipt.duplicate:
            self._inbox.disown(job.id)
        if job.reply_to and receipt.id == job.id and receipt.state not in TERMINAL:
            self._kept.keep(job)
        return receipt

    async def _put_again(self, id: str) -> bool:
        """Submit once more what Redis has lost. False: it is not ours, or was submitted often enough."""
        job = self._kept.again(id)
        if job is not None:
            await self._put(job, SUBMIT_TIMEOUT_S)
        return job is not None

    async def _events(self, id: str) -> AsyncGenerator[JobEvent]:
        feed = Feed()
        self._inbox.add(id, feed)
        try:
            await self._inbox.catch_up(id, feed)
            while True:
                event = await feed.next()
                yield event
                if feed.ended and feed.empty():
                    return
        finally:
            self._inbox.drop(id, feed)

    async def _end(self, id: str) -> Result:
        ending = Ending()
        self._inbox.add(id, ending)
        try:
            await self._inbox.catch_up(id)
            return await ending.future
        finally:
            self._inbox.drop(id, ending)

    async def _run(self, job: Submission, end_s: float | None) -> Result:
        """Listen before submitting, so that the answer cannot come too early."""
        id, ending = job.id, Ending()
        self._inbox.add(id, ending)
        try:
            patience_s = SUBMIT_TIMEOUT_S if end_s is None else end_s - asyncio.get_running_loop().time()
            receipt = await self._outbox.put(job, patience_s)
            self._kept.keep(job)
            if receipt.id != id:
                self._inbox.drop(id, ending)
                id = receipt.id
                self._inbox.add(id, ending)
            async with asyncio.timeout_at(end_s):
                if receipt.duplicate or job.reply_to != self._inbox.name:
                    await self._inbox.catch_up(id)
                else:
                    self._inbox.accepted(id)
                return await ending.future
        except TimeoutError:
            raise WaitTimeout(id=id) from None
        finally:
            self._inbox.drop(id, ending)

    def _submission(self, request: InferenceRequest, *, watch: bool = True, stream: bool = True) -> Submission:
        if request.traceparent is None and (traceparent := current_traceparent()) is not None:
            request = msgspec.structs.replace(request, traceparent=traceparent)
        return Submission(
            id=request.id,
            body=encode_request(request),
            digest=body_digest(request),
            priority=int(request.class_),
            tenant=request.tenant,
            deadline_ms=request.deadline_ms or 0,
            idempotency_key=request.idempotency_key or "",
            reply_to=request.reply_to or (self._inbox.name if watch else ""),
            stream=stream and request.stream,
        )


def _check_id(id: str) -> None:
    """What cannot be a job's id is no job, and never reaches a key or the connection."""
    if not _ID.fullmatch(id):
        raise JobGone(f"no job can have the id {id[:130]!a}", id=ascii(id[:130]))


def _there(id: str, found: _T | None) -> _T:
    if found is None:
        raise JobGone(f"job {id} is not in the queue", id=id)
    return found


def _error(result: Result) -> JobError:
    """The exception of a result that is not `done`."""
    error = result.error or {}
    kind = _ERRORS.get(str(error.get("code"))) if result.state == "failed" else _ERRORS.get(result.state)
    after_s = error.get("retry_after_s")
    return (kind or JobFailed)(error.get("message"), id=result.request_id, error=error or None, retry_after_s=after_s)


def _connect(url: str | None, prefix: str | None) -> Queue:
    from metamusesd.queues.redis_queue import RedisQueue

    defaults = config.Config()
    queue: Queue = RedisQueue(url or defaults.redis_url, prefix or defaults.redis.prefix)
    return queue
