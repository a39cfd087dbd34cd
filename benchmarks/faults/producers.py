"""Faults benchmark · bench process · live through one job as a producer does: submit until answered, wait, cancel.

A submit without an answer is made again under the same id; a job that is gone (Redis lost it) is submitted again under
the same id. Everything that was seen is written into the job's Life; nothing is judged here but what cannot be.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

from benchmarks.faults.history import History, Life, Sight, now_ms
from benchmarks.faults.node import NodeProducer, takes
from benchmarks.faults.plan import Job
from benchmarks.faults.raw import RawProducer, request
from benchmarks.faults.resp import ReplyError
from metamusesd.client import Client
from metamusesd.errors import (
    DeadlineUnmeetable,
    IdConflict,
    JobGone,
    QueueError,
    QueueFull,
    RequestError,
    WaitTimeout,
)  # fmt: skip
from metamusesd.job import Result

LIFE_LIMIT_S = 240.0  # no job of the plan takes longer, whatever chaos does
SUBMIT_S, WAIT_S = 10.0, 20.0
PAUSE_S = 0.2
MOST_LOST = 20


class Refused(Exception):
    """The queue said no; its code is the text."""


class Producers:
    """Several clients of ours, one raw producer and perhaps one in Node, on one queue."""

    def __init__(
        self, clients: list[Client], raw: RawProducer, node: NodeProducer | None, history: History, seed: int
    ) -> None:
        self._clients, self._raw, self._node, self._history, self._seed = clients, raw, node, history, seed

    async def live(self, job: Job) -> Life:
        """One job from submit to its end, within LIFE_LIMIT_S."""
        life = self._history.life(job)
        dice = random.Random(f"{self._seed}/{job.number}/life")
        try:
            async with asyncio.timeout(LIFE_LIMIT_S):
                await self._live(life, dice)
        except TimeoutError:
            life.wrongs.append(f"no end within {LIFE_LIMIT_S:g} s")
        except ExceptionGroup as group:
            for error in group.exceptions:
                self._explain(life, error)
        except Exception as error:
            self._explain(life, error)
        life.note("left")
        return life

    async def _live(self, life: Life, dice: random.Random) -> None:
        job = life.job
        if self._node is not None and takes(job):
            await self._node.live(life)
            return
        if job.spoil:
            await self._persist(life, lambda: self._raw.submit_spoilt(job))
            return
        submit, wait, cancel = self._way(life, dice)
        if job.racers:
            await self._race(life)
        else:
            await self._persist(life, submit)
        if job.kind == "conflict":
            await self._conflict(life)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._see(life, submit, wait))
            if job.cancel:
                group.create_task(self._cancel(life, cancel))
            if not job.raw and dice.random() < 0.3:
                group.create_task(self._see(life, submit, self._waiter(life, dice)))
            if job.stream and not job.raw and dice.random() < 0.5:
                group.create_task(self._follow(life, submit, dice.choice(self._clients)))

    def _explain(self, life: Life, error: Exception) -> None:
        if isinstance(error, Refused):
            life.refused = str(error)
        else:
            life.wrongs.append(f"a producer saw {error!r}")

    def _way(
        self, life: Life, dice: random.Random
    ) -> tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[Sight | None]], Callable[[str], Awaitable[str]]]:
        """How this job is submitted, waited for and cancelled."""
        if life.job.raw:
            return lambda: self._submit_raw(life), lambda: self._wait_raw(life), self._raw.cancel
        client = dice.choice(self._clients)
        return lambda: self._submit(life, client), self._waiter(life, dice), client.cancel

    async def _persist(self, life: Life, submit: Callable[[], Awaitable[None]]) -> None:
        """Submit until somebody answers."""
        while True:
            try:
                await submit()
            except (QueueError, OSError) as error:
                if isinstance(error, QueueFull):
                    raise
                life.unsure += 1
                life.note(f"submit: {error!r}")
                await asyncio.sleep(PAUSE_S)
            else:
                life.accepted_ms = life.accepted_ms or now_ms()
                return

    async def _submit(self, life: Life, client: Client) -> None:
        try:
            receipt = await client.submit(request(life.job), SUBMIT_S)
        except (RequestError, QueueFull, DeadlineUnmeetable) as error:
            raise Refused(error.code) from error
        life.id = receipt.id
        life.note(f"submitted: {receipt}")

    async def _submit_raw(self, life: Life) -> None:
        try:
            kind, id, detail = await self._raw.submit(life.job)
        except ReplyError as error:
            if str(error).startswith("INVALID"):
                raise Refused("invalid") from error
            raise ConnectionError(str(error)) from error
        life.note(f"submitted: {kind} {id} {detail}")
        if kind in ("full", "conflict"):
            raise Refused(kind)
        life.id = id

    async def _race(self, life: Life) -> None:
        """Many submit the same under one idempotency key; all must be told the same id."""
        names = [f"{life.job.id}.{number}" for number in range(life.job.racers)]
        racers = [Life(replace(life.job, id=name), name) for name in names]
        clients = [self._clients[number % len(self._clients)] for number in range(len(names))]
        await asyncio.gather(
            *(self._persist(one, lambda one=one, client=client: self._submit(one, client))  # type: ignore[misc]
              for one, client in zip(racers, clients, strict=True))
        )  # fmt: skip
        answers = sorted({one.id for one in racers})
        if len(answers) > 1:
            life.wrongs.append(f"{len(names)} racers were told {answers}")
        life.id = answers[0]
        life.accepted_ms = now_ms()
        life.unsure += sum(one.unsure for one in racers)
        life.absent = [name for name in names if name not in answers]
        life.note(f"a race of {len(names)}: {answers}")

    async def _conflict(self, life: Life) -> None:
        """Another body under the same key is told so."""
        other = Life(replace(life.job, id=f"{life.job.id}.other", query="something else"), f"{life.job.id}.other")
        try:
            await self._persist(other, lambda: self._submit(other, self._clients[0]))
        except Refused as refusal:
            if str(refusal) == IdConflict.code:
                life.absent.append(other.job.id)
                return
        life.wrongs.append(f"another body under its key was not refused: {other.id}")

    def _waiter(self, life: Life, dice: random.Random) -> Callable[[], Awaitable[Sight | None]]:
        client = dice.choice(self._clients)

        async def wait() -> Sight | None:
            try:
                return _sight("wait", await client.wait(life.id, WAIT_S))
            except JobGone:
                return None

        return wait

    async def _wait_raw(self, life: Life) -> Sight | None:
        found = await self._raw.result(life.id)
        if found is None:
            return None
        code = (found.get("error") or {}).get("code", "")
        return Sight("raw", found["state"], found.get("content", ""), code, now_ms())

    async def _see(
        self, life: Life, submit: Callable[[], Awaitable[None]], wait: Callable[[], Awaitable[Sight | None]]
    ) -> None:
        """Wait for the end, and submit again what is gone."""
        while True:
            try:
                sight = await wait()
            except (QueueError, OSError, WaitTimeout) as error:
                life.note(f"wait: {error!r}")
                await asyncio.sleep(PAUSE_S)
                continue
            if sight is not None:
                life.sights.append(sight)
                return
            await self._again(life, submit)

    async def _again(self, life: Life, submit: Callable[[], Awaitable[None]]) -> None:
        life.lost += 1
        life.note("gone; submitted again")
        if life.lost > MOST_LOST:
            raise Refused("lost again and again")
        await self._persist(life, submit)

    async def _follow(self, life: Life, submit: Callable[[], Awaitable[None]], client: Client) -> None:
        """Read the stream as it grows: no gap, no double, one end."""
        while True:
            text, state = "", ""
            try:
                async for event in client.stream(life.id):
                    if event.kind == "restarted":
                        text = ""
                    elif event.kind == "token":
                        if event.offset != len(text):
                            life.wrongs.append(f"a reader got offset {event.offset} after {len(text)} characters")
                        text += event.text
                    elif event.kind in ("done", "failed", "cancelled", "expired", "dead"):
                        state = event.kind
            except QueueError as error:
                life.note(f"stream: {error!r}")
                await asyncio.sleep(PAUSE_S)
                continue
            except JobGone:
                await self._again(life, submit)
                continue
            life.sights.append(Sight("stream", state, text, at_ms=now_ms()))
            return

    async def _cancel(self, life: Life, cancel: Callable[[str], Awaitable[str]]) -> None:
        """At the moment that the plan names; the answer is kept."""
        wanted = {"started": ("started",), "token": ("token",)}.get(life.job.cancel)
        if wanted:
            await self._until_event(life, wanted)
        elif life.job.cancel == "later":
            await asyncio.sleep(life.job.pause_s)
        while True:
            try:
                answer = await cancel(life.id)
            except (QueueError, OSError, ReplyError) as error:
                life.note(f"cancel: {error!r}")
                await asyncio.sleep(PAUSE_S)
                continue
            life.cancels.append(answer)
            life.note(f"cancel: {answer}")
            return

    async def _until_event(self, life: Life, kinds: tuple[str, ...]) -> None:
        """Until the job says so, or ended."""
        while True:
            try:
                async for event in self._clients[0].stream(life.id):
                    if event.kind in (*kinds, "done", "failed", "cancelled", "expired", "dead"):
                        return
            except (QueueError, JobGone):
                await asyncio.sleep(PAUSE_S)


def _sight(who: str, result: Result) -> Sight:
    return Sight(who, result.state, result.content, (result.error or {}).get("code", ""), now_ms())
