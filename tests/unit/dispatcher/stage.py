"""A dispatcher on the memory queue, with workers played by the test at the other end of real pipes."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from metamusesd.board import Board
from metamusesd.dispatcher.caching import Rules
from metamusesd.dispatcher.dispatcher import Dispatcher
from metamusesd.dispatcher.endings import Retries
from metamusesd.dispatcher.router import RoutingRules, TierView
from metamusesd.errors import QueueUnavailable
from metamusesd.job import Result, decode_result
from metamusesd.log import get_logger
from metamusesd.queues.base import JobEvent, Submission, Verdict
from metamusesd.queues.memory import MemoryQueue
from metamusesd.wire import Found, Frame, FrameReader, Generate, Hello, Look, Question, encode

EPOCHS = itertools.count(1)
TIERS = (TierView("fast", "m"), TierView("heavy", "h"))
Q = TypeVar("Q")
IDS = (f"job-{n}" for n in itertools.count())


class Fragile(MemoryQueue):
    """A memory queue that can be away."""

    away = False
    full = False  # text is refused, ends are taken

    async def append(self, pieces: Any) -> list[Verdict]:
        if self.away or self.full:
            raise QueueUnavailable
        return await super().append(pieces)

    async def settle(self, ends: Any) -> list[Verdict]:
        if self.away:
            raise QueueUnavailable
        return await super().settle(ends)


class PlayedWorker:
    """The worker's end of a pipe, in the hands of a test."""

    def __init__(self, sock: socket.socket, epoch: int, slots: int) -> None:
        self._sock, self.epoch, self.slots = sock, epoch, slots
        self._frames: asyncio.Queue[tuple[Frame, Any]] = asyncio.Queue()
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        loop, reader = asyncio.get_running_loop(), FrameReader(self.epoch)
        while data := await loop.sock_recv(self._sock, 65536):
            for frame in reader.feed(data):
                self._frames.put_nowait(frame)

    async def send(self, frame: Frame, payload: Any) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, encode(frame, self.epoch, payload))

    async def hello(self, tier: str, context: int) -> None:
        await self.send(Frame.HELLO, Hello(f"{tier}-0", tier, "m", f"sha256:{tier}", "echo", context, self.slots, 0))

    async def orders(self, count: int = 1) -> list[Generate]:
        """The next orders, from as many frames as it takes."""
        found: list[Generate] = []
        while len(found) < count:
            frame, payload = await asyncio.wait_for(self._frames.get(), 5)
            assert frame is Frame.GENERATE
            found += payload
        return found

    async def cancels(self) -> list[int]:
        frame, payload = await asyncio.wait_for(self._frames.get(), 5)
        assert frame is Frame.CANCEL
        return list(payload)

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
        self._sock.close()


class PlayedVectors:
    """The vectors process' end of the pipe. What it was told or asked gathers in `heard`."""

    def __init__(self, sock: socket.socket, epoch: int, answer: Callable[[Look], Found | None]) -> None:
        self._sock, self.epoch, self._answer = sock, epoch, answer
        self.heard: list[Question] = []
        self._changed = asyncio.Event()
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        loop, reader = asyncio.get_running_loop(), FrameReader(self.epoch)
        while data := await loop.sock_recv(self._sock, 65536):
            for frame, questions in reader.feed(data):
                assert frame is Frame.ASK
                self.heard += questions
                self._changed.set()
                looks = [each for each in questions if type(each) is Look]
                answers = [found for look in looks if (found := self._answer(look)) is not None]
                await loop.sock_sendall(self._sock, encode(Frame.ANSWER, self.epoch, answers))

    async def told(self, kind: type[Q], count: int = 1) -> list[Q]:
        """So many questions or news of this kind, sooner or later."""
        async with asyncio.timeout(5):
            while len(found := [each for each in self.heard if type(each) is kind]) < count:
                self._changed.clear()
                await self._changed.wait()
        return found

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
        self._sock.close()


class Stage:
    """A dispatcher at work and what a test needs around it."""

    def __init__(
        self, queue: Fragile | None = None, tiers: Sequence[TierView] = TIERS, owner: str = "host:1",
        rules: Rules | None = None, routing: RoutingRules | None = None,
    ) -> None:  # fmt: skip
        self.queue, self.board = queue or Fragile(), Board(2)
        retries = Retries(most=2, first_s=0.0)
        self.lost_pipes: list[int] = []
        self.dispatcher = Dispatcher(
            self.queue, self.board, list(tiers), owner, get_logger("test"), retries=retries, rules=rules,
            routing=routing or RoutingRules(), vectors_lost=self.lost_pipes.append,
        )  # fmt: skip
        self.workers: list[PlayedWorker] = []
        self.vectors: list[PlayedVectors] = []
        loop = asyncio.get_running_loop()
        works = (self.dispatcher.pump.run(), self.dispatcher.pump.watch(), self.dispatcher.outbox.run())
        self.tasks = [loop.create_task(work) for work in works]

    async def worker(self, slots: int = 4, row: int = 0, tier: str = "fast", context: int = 4096) -> PlayedWorker:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        worker = PlayedWorker(ours, next(EPOCHS), slots)
        self.workers.append(worker)
        await self.dispatcher.fleet.connect(row, worker.epoch, f"{tier}-{row}", tier, theirs.detach())
        await worker.hello(tier, context)
        return worker

    async def play_vectors(self, answer: Callable[[Look], Found | None]) -> PlayedVectors:
        """A vectors process that answers lookups like this; None: it stays silent."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        played = PlayedVectors(ours, next(EPOCHS), answer)
        self.vectors.append(played)
        await self.dispatcher.vectors.connect(played.epoch, theirs.detach())
        return played

    async def submit(self, body: bytes = b'{"user_query":"hi"}', priority: int = 1, **more: Any) -> str:
        id = next(IDS)
        await self.queue.submit([Submission(id, body, id, priority, **more)])
        return id

    async def ended(self, id: str) -> Result:
        async with asyncio.timeout(5):
            while (raw := await self.queue.result(id)) is None:
                await asyncio.sleep(0)
        return decode_result(raw)

    async def state(self, id: str, wanted: str) -> None:
        async with asyncio.timeout(5):
            while (view := await self.queue.view(id)) is None or view.state != wanted:
                await asyncio.sleep(0)

    async def texts(self, id: str) -> list[JobEvent]:
        return [event for event in await self.queue.events(id) if event.kind == "token"]

    async def kinds(self, id: str) -> list[tuple[str, int]]:
        """What the job's stream says: (kind, attempt) of every event."""
        return [(event.kind, event.attempt) for event in await self.queue.events(id)]

    async def die(self, worker: PlayedWorker, row: int = 0, exit: int = -11, **more: Any) -> None:
        """The worker crashes, and the supervisor says so."""
        await worker.close()
        self.workers.remove(worker)
        self.unlink(worker, row, exit, **more)

    def unlink(self, worker: PlayedWorker, row: int, exit: int, **more: Any) -> None:
        """The supervisor's word about the end of a worker."""
        self.dispatcher.fleet.unlink({"row": row, "epoch": worker.epoch, "exit": exit, **more})

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        self.dispatcher.vectors.close()
        for player in (*self.workers, *self.vectors):
            await player.close()
        await asyncio.sleep(0)
