"""Stages 4, 10 · dispatcher · its end of the pipe to the vectors process: questions with a deadline, news without.

Nobody waits longer than the budget: then the lookup is a miss, and counted. Many of these in a row, and the process is
not asked for a while (breaker.py). EOF: all who wait have missed; the supervisor brings another pipe.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from typing import cast

from metamusesd.dispatcher.breaker import Breaker
from metamusesd.dispatcher.run import Lost
from metamusesd.errors import WireError
from metamusesd.log import Logger
from metamusesd.wire import (
    Complain,
    Embed,
    Embedded,
    Found,
    Frame,
    FrameReader,
    Keep,
    Leave,
    Look,
    Question,
    Withdraw,
    encode,
)

FRAME_QUESTIONS = 64  # in one frame: of texts that lookup.py lets pass, and of answers that may be kept
MOST_UNSENT_BYTES = 16 * 1024 * 1024  # of a process that does not read: what is news only is dropped then


class VectorsLink:
    """The pipe, or none at present. One loop uses it."""

    def __init__(self, budget_ms: float, lost: Callable[[int], None], log: Logger) -> None:
        self._budget_s, self._lost, self._log = budget_ms / 1000, lost, log
        self._pipe: _Pipe | None = None
        self._waiting: dict[int, tuple[Callable[[Found], None], asyncio.TimerHandle]] = {}
        self._embedding: dict[int, Callable[[Embedded | Lost], None]] = {}
        self._away_since_s = time.monotonic()
        self._handles = 0
        self._unsent: list[Question] = []
        self.breaker = Breaker()

    def __repr__(self) -> str:
        return f"<VectorsLink {'linked' if self.linked else 'away'} waiting={len(self._waiting)} {self.breaker}>"

    @property
    def linked(self) -> bool:
        """There is somebody to ask."""
        return self._pipe is not None

    async def connect(self, epoch: int, fd: int) -> None:
        """A fresh pipe; an older one is over."""
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        if self._pipe is not None and self._pipe.epoch >= epoch:
            sock.close()
            return
        self.close()
        pipe = _Pipe(epoch, self._answered, self._embedded, self._parted, self._log)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: pipe, sock=sock)
        except OSError as error:
            sock.close()
            self._log.warning("vectors could not be linked", epoch=epoch, problem=str(error))
            self._lost(epoch)
            return
        self.close()  # of two that came at once, the later one counts
        self._pipe, self.breaker = pipe, Breaker()  # another process: no grudge
        self._log.info("vectors linked", epoch=epoch)

    def close(self) -> None:
        """Hang up. Legal twice."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            self._away_since_s = time.monotonic()
            pipe.close()
        self._give_up("the pipe is closed")

    def may_ask(self) -> bool:
        """Whether `look` makes sense now; a yes must be followed by it."""
        return self.linked and self.breaker.allows(time.monotonic())

    def look(self, question: Callable[[int, int], Look], done: Callable[[Found], None]) -> None:
        """Ask `question(handle, until_ns)`; `done` gets the answer, or `late` or `failed`, within the budget."""
        self._handles += 1
        handle, loop = self._handles, asyncio.get_running_loop()
        timer = loop.call_later(self._budget_s, self._late, handle)
        self._waiting[handle] = done, timer
        self._send(question(handle, time.monotonic_ns() + int(self._budget_s * 1e9)))

    def embed(self, texts: Sequence[str], priority: int, done: Callable[[Embedded | Lost], None]) -> int:
        """Ask for their vectors, without a budget: the process is watched. The handle; 0: nobody is there."""
        if self._pipe is None or self._pipe.unsent_bytes() >= MOST_UNSENT_BYTES:
            return 0
        self._handles += 1
        self._embedding[self._handles] = done
        self._send(Embed(self._handles, list(texts), priority))
        return self._handles

    def leave(self, handle: int) -> None:
        """Nobody waits for that any more: `done` is not called."""
        if self._embedding.pop(handle, None) is not None and self._pipe is not None:
            self._send(Leave(handle))

    @property
    def away_s(self) -> float:
        """For how long nobody has been there; 0: somebody is."""
        return 0.0 if self.linked else time.monotonic() - self._away_since_s

    def tell(self, news: Keep | Withdraw | Complain) -> None:
        """No answer comes. Lost when nobody is there."""
        if self._pipe is not None and self._pipe.unsent_bytes() < MOST_UNSENT_BYTES:
            self._send(news)

    def _send(self, question: Question) -> None:
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(question)

    def _flush(self) -> None:
        """In frames that are not too long; a question is far from being that."""
        unsent, self._unsent = self._unsent, []
        if self._pipe is None:
            return
        embeds = [question for question in unsent if type(question) is Embed]  # each may be as long as a body
        others = [question for question in unsent if type(question) is not Embed]
        for question in embeds:
            self._pipe.send([question])
        for first in range(0, len(others), FRAME_QUESTIONS):
            self._pipe.send(others[first : first + FRAME_QUESTIONS])

    def _answered(self, found: Found) -> None:
        done, timer = self._waiting.pop(found.handle, (None, None))
        if done is None or timer is None:
            return  # too late
        timer.cancel()
        if found.verdict == "failed":
            self.breaker.failed(time.monotonic())
        else:
            self.breaker.answered()
        self._tell(done, found)

    def _embedded(self, embedded: Embedded) -> None:
        if (done := self._embedding.pop(embedded.handle, None)) is not None:
            done(embedded)

    def _late(self, handle: int) -> None:
        done, _ = self._waiting.pop(handle)
        self.breaker.failed(time.monotonic())
        self._tell(done, Found(handle, "late", reason="no answer within the budget"))

    def _parted(self, pipe: _Pipe) -> None:
        if pipe is self._pipe:
            self._pipe, self._away_since_s = None, time.monotonic()
            self._give_up("the vectors process is gone")
            self._lost(pipe.epoch)

    def _give_up(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self.breaker.failed(time.monotonic())
        for handle, (done, timer) in waiting.items():
            timer.cancel()
            self._tell(done, Found(handle, "failed", reason=reason))
        embedding, self._embedding = self._embedding, {}
        for ended in embedding.values():
            ended(Lost(crashed=False, reason="lost"))

    def _tell(self, done: Callable[[Found], None], found: Found) -> None:
        """Whatever one job makes of its answer, the others get theirs."""
        try:
            done(found)
        except Exception as error:
            self._log.error("a lookup's answer was not taken", problem=f"{type(error).__name__}: {error}")


class _Pipe(asyncio.Protocol):
    """One epoch."""

    def __init__(
        self, epoch: int, answered: Callable[[Found], None], embedded: Callable[[Embedded], None],
        parted: Callable[[_Pipe], None], log: Logger,
    ) -> None:  # fmt: skip
        self.epoch = epoch
        self._answered, self._embedded, self._parted, self._log = answered, embedded, parted, log
        self._reader = FrameReader(epoch)
        self._transport: asyncio.Transport | None = None

    def send(self, questions: list[Question]) -> None:
        if self._transport is not None:
            self._transport.write(encode(Frame.ASK, self.epoch, questions))

    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        try:
            for frame, payload in self._reader.feed(data):
                if frame is not Frame.ANSWER:
                    raise WireError(f"the vectors process does not send {frame.name}")
                for answer in payload:
                    if type(answer) is Found:
                        self._answered(answer)
                    elif type(answer) is Embedded:
                        self._embedded(answer)
        except WireError as error:
            self._log.error("garbage on the pipe", worker="vectors", problem=error.message)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._parted(self)
