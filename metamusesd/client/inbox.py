"""Stage 9 · producer · learn what becomes of jobs, all of them over one connection.

Jobs that this client submits name its mailbox, and one task reads it. A mailbox is a hint: what it loses (an outage, a
trimmed stream) is healed by asking for the job itself, at once after a reconnect and else every few seconds, with
back-off. Jobs that others submitted do not write to our mailbox: each is followed on its own stream.

    mailbox ──────────reader─────────┐
    events:<id> ──────follower|check─┼──► Watch ──► Ending, Feed …
    result:<id> ──────check──────────┘
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from metamusesd.client.feed import ENDS, Feed
from metamusesd.client.outbox import pause_s, spread_s
from metamusesd.errors import JobGone, QueueError, QueueFault, QueueUnavailable
from metamusesd.job import decode_result
from metamusesd.queues.base import JobEvent, Queue

BLOCK_MS = 5_000
TICK_S = 0.5
AT_ONCE_S = 1e-9  # a time to check that has come
FIRST_CHECK_S = 2.0
LONGEST_CHECK_S = 15.0
CHECKS_AT_ONCE = 32
MOST_FAULTS = 3  # checks in a row that found a key of the job in another program's hands: then its waiters are told
MANY = 100  # events in one answer after which there may be more
BLOCKING_FOLLOWERS = 8  # each holds a connection; the others look again every FOLLOW_S
FOLLOW_S = 0.25
OWN_IDS = 20_000  # as many as a mailbox holds; an older job is followed on its own stream instead


class Waiter(Protocol):
    """Whatever wants to hear of a job: an Ending or a Feed."""

    whole: bool

    def offer(self, event: JobEvent, run: int = 0) -> bool:
        """See Feed."""

    def fail(self, error: Exception) -> None:
        """See Feed."""


class Tail:
    """How far a job's own stream was read: behind which entry, and in which run of the job that was."""

    __slots__ = ("cursor", "run")

    def __init__(self) -> None:
        self.cursor = "0"
        self.run = 0


class Watch:
    """All waiters for one job. The checks leave it alone (`due_s` 0) until its job was accepted."""

    __slots__ = ("check_s", "due_s", "faults", "follower", "id", "tail", "waiters")

    def __init__(self, id: str) -> None:
        self.id = id
        self.waiters: list[Waiter] = []
        self.tail: Tail | None = None  # read by the follower if there is one, else by the checks
        self.due_s = 0.0
        self.check_s = FIRST_CHECK_S
        self.faults = 0
        self.follower: asyncio.Task[None] | None = None


class Inbox:
    """The waits of one client. All methods belong to one event loop."""

    def __init__(self, queue: Queue, on_end: Callable[[str], None] = lambda id: None) -> None:
        self.name = f"client-{secrets.token_hex(8)}"
        self._queue, self._on_end = queue, on_end
        self._cursor = "0"
        self._watches: dict[str, Watch] = {}
        self._own: dict[str, int] = {}  # jobs whose whole life is in our mailbox: how often each was restarted
        self._tasks: list[asyncio.Task[None]] = []
        self._blocked = 0

    def own(self, id: str) -> None:
        """This job is about to be submitted and names our mailbox."""
        self._own[id] = 0
        if len(self._own) > OWN_IDS:
            del self._own[next(iter(self._own))]

    def disown(self, id: str) -> None:
        """It was not, or it had a life before."""
        self._own.pop(id, None)

    def add(self, id: str, waiter: Waiter) -> None:
        """From now on `waiter` hears what the mailbox brings. For a job that is about to be submitted."""
        watch = self._watches.get(id)
        if watch is None:
            watch = self._watches[id] = Watch(id)
        watch.waiters.append(waiter)
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._repeat(work)) for work in (self._read, self._heal)]

    def accepted(self, id: str) -> None:
        """The job of an `add` is in the queue: its checks begin."""
        watch = self._watches.get(id)
        if watch is not None and not watch.due_s:
            watch.due_s = asyncio.get_running_loop().time() + watch.check_s

    async def catch_up(self, id: str, feed: Feed | None = None) -> None:
        """The job of an `add` may have a past and may be anybody's: hear that past, then follow the job."""
        watch = self._watches.get(id)
        if watch is None:
            return
        tail, past = Tail(), list[tuple[JobEvent, int]]()
        with suppress(QueueUnavailable):
            while feed is not None and (more := await self._continue(id, tail)):
                past += more
                if len(more) < MANY:
                    break
            if not past:
                await self._probe(watch)
        if feed is not None:
            feed.catch_up(past)
        watch.tail = watch.tail or tail
        self.accepted(id)
        if id not in self._own and watch.follower is None and self._live(watch):
            watch.follower = asyncio.create_task(self._follow(watch, watch.tail))

    def drop(self, id: str, waiter: Waiter) -> None:
        """`waiter` has gone. Legal after the job's end."""
        watch = self._watches.get(id)
        if watch is not None and waiter in watch.waiters:
            watch.waiters.remove(waiter)
            if not watch.waiters:
                self._forget(watch)

    async def close(self) -> None:
        """Stop all tasks; every waiter fails with QueueUnavailable. Legal twice."""
        tasks = self._tasks + [watch.follower for watch in self._watches.values() if watch.follower]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for watch in list(self._watches.values()):
            self._fail(watch, QueueUnavailable("the client was closed"))
        self._tasks = []

    async def _repeat(self, work: Callable[[], Awaitable[None]]) -> None:
        """Work on and on. After a failure of the queue: pause, and have every job checked."""
        tries = 0
        while True:
            try:
                await work()
                tries = 0
            except QueueError:
                self._check_soon()
                await asyncio.sleep(pause_s(tries))
                tries += 1

    async def _read(self) -> None:
        events = await self._queue.mail(self.name, after=self._cursor, block_ms=BLOCK_MS)
        if events:
            self._cursor = events[-1].cursor
        for event in events:
            run = self._own.get(event.id)
            if run is not None and event.kind == "restarted":
                run = self._own[event.id] = run + 1
            watch = self._watches.get(event.id)
            if watch is not None:
                self._deliver(watch, event, run)
            elif event.kind in ENDS:
                self._own.pop(event.id, None)
                self._on_end(event.id)

    def _deliver(self, watch: Watch, event: JobEvent, run: int | None) -> None:
        """Hand an event to all who wait for its job. Without its run, only an end means something."""
        ended = event.kind in ENDS
        if run is None and not ended:
            return
        for waiter in watch.waiters:
            try:
                if waiter.offer(event, run or 0):
                    watch.due_s = min(watch.due_s, AT_ONCE_S)
            except Exception as error:  # a result that is not one: the trouble of its readers, not of the mailbox
                waiter.fail(error)
        if ended:
            self._on_end(watch.id)
            self.disown(watch.id)
            self._forget(watch)

    async def _continue(self, id: str, tail: Tail, block_ms: int = 0) -> list[tuple[JobEvent, int]]:
        """The next events of a job's own stream, each with its run."""
        events = await self._queue.events(id, after=tail.cursor, block_ms=block_ms)
        heard = []
        for event in events:
            if event.kind in ENDS and not event.data:
                continue  # its result has expired
            tail.run += event.kind == "restarted"
            heard.append((event, tail.run))
        if events:
            tail.cursor = events[-1].cursor
        return heard

    async def _hear(self, watch: Watch, tail: Tail, block_ms: int = 0) -> None:
        for event, run in await self._continue(watch.id, tail, block_ms):
            if self._live(watch):
                self._deliver(watch, event, run)

    async def _follow(self, watch: Watch, tail: Tail) -> None:
        tries = 0
        while self._live(watch):
            try:
                if self._blocked < BLOCKING_FOLLOWERS:
                    await self._hear_blocking(watch, tail)
                else:
                    await self._hear(watch, tail)
                    await asyncio.sleep(spread_s(FOLLOW_S))
                tries = 0
            except QueueError:
                await asyncio.sleep(pause_s(tries))
                tries += 1

    async def _hear_blocking(self, watch: Watch, tail: Tail) -> None:
        self._blocked += 1
        try:
            await self._hear(watch, tail, BLOCK_MS)
        finally:
            self._blocked -= 1

    async def _heal(self) -> None:
        await asyncio.sleep(TICK_S)
        now_s = asyncio.get_running_loop().time()
        due = [watch for watch in self._watches.values() if 0 < watch.due_s <= now_s]
        for watch in due:
            watch.check_s = min(watch.check_s * 1.5, LONGEST_CHECK_S)
            watch.due_s = now_s + spread_s(watch.check_s)
        for start in range(0, len(due), CHECKS_AT_ONCE):
            await asyncio.gather(*(self._check(watch) for watch in due[start : start + CHECKS_AT_ONCE]))

    async def _check(self, watch: Watch) -> None:
        """Ask for the job itself: its events since the last check, its result, or whether it is there at all. A key
        that another program has written stops the checks of this job only, and not at once: it may be mended."""
        try:
            if watch.follower is None and watch.tail is not None and any(waiter.whole for waiter in watch.waiters):
                with suppress(QueueFault):
                    await self._hear(watch, watch.tail)
            if self._live(watch):
                await self._probe(watch)
            watch.faults = 0
        except QueueFault as error:
            watch.faults += 1
            if watch.faults >= MOST_FAULTS:
                self._fail(watch, error)

    async def _probe(self, watch: Watch) -> None:
        """Deliver the job's result if there is one, and JobGone if there is no job."""
        raw = await self._queue.result(watch.id)
        if raw is None and await self._queue.view(watch.id) is None:
            raw = await self._queue.result(watch.id)
            if raw is None:
                self._fail(watch, JobGone(f"job {watch.id} is not in the queue", id=watch.id))
        if raw is not None and self._live(watch):
            try:
                result = decode_result(raw)
            except Exception as error:
                self._fail(watch, error)
            else:
                self._deliver(watch, JobEvent("", watch.id, result.state, result.attempt, data=raw), None)

    def _check_soon(self) -> None:
        for watch in self._watches.values():
            if watch.due_s:
                watch.due_s, watch.check_s = AT_ONCE_S, FIRST_CHECK_S

    def _live(self, watch: Watch) -> bool:
        return self._watches.get(watch.id) is watch

    def _fail(self, watch: Watch, error: Exception) -> None:
        for waiter in watch.waiters:
            waiter.fail(error)
        self.disown(watch.id)
        self._forget(watch)

    def _forget(self, watch: Watch) -> None:
        if self._live(watch):
            del self._watches[watch.id]
        follower, watch.follower = watch.follower, None
        if follower is not None and follower is not asyncio.current_task():
            follower.cancel()
