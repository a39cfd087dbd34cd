"""Stage 4 · vectors process · one conversation: the dispatcher's pipe (one epoch of it), or an operator (epoch 0).

Questions come in frames and are handed on one by one; answers leave as they come, those of one turn of the loop in one
frame. Whoever does not read loses answers: he has stopped waiting long before. Only vectors of embed jobs are kept: the
dispatcher bounds how many it asks for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from metamusesd.errors import WireError
from metamusesd.log import Logger
from metamusesd.wire import Answer, Embedded, Frame, FrameReader, Question, encode

FULL_BYTES = 4 * 1024 * 1024  # unread answers


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a conversation tells the process."""

    begun: Callable[[Talk], bool]  # False: it is not welcome
    asked: Callable[[Talk, Question], None]
    over: Callable[[Talk], None]


class Talk(asyncio.Protocol):
    """One conversation."""

    def __init__(self, epoch: int, hooks: Hooks, log: Logger) -> None:
        self.epoch, self.closed = epoch, False
        self.transport: asyncio.Transport | None = None
        self._hooks, self._log = hooks, log
        self._reader = FrameReader(epoch)
        self._answers: list[Answer] = []

    def __repr__(self) -> str:
        return f"<Talk epoch={self.epoch}{' closed' if self.closed else ''}>"

    def say(self, answer: Answer) -> None:
        """It leaves with the others of this turn of the loop, if anybody is there who reads."""
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._flush)
        self._answers.append(answer)

    def close(self) -> None:
        """Hang up. Legal twice."""
        if self.transport is not None:
            self.transport.abort()

    def _flush(self) -> None:
        answers, self._answers = self._answers, []
        if self.closed or self.transport is None:
            return
        if self.transport.get_write_buffer_size() > FULL_BYTES:  # those of embed jobs are waited for without a limit
            answers = [answer for answer in answers if type(answer) is Embedded]
        if answers:
            self.transport.write(encode(Frame.ANSWER, self.epoch, answers))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if not self._hooks.begun(self):
            self.close()

    def data_received(self, data: bytes) -> None:
        if self.closed or (self.transport is not None and self.transport.is_closing()):
            return
        try:
            for frame, questions in self._reader.feed(data):
                if frame is not Frame.ASK:
                    raise WireError(f"vectors does not take {frame.name}")
                for question in questions:
                    self._hooks.asked(self, question)
        except WireError as error:
            self._log.error("garbage from an asker", epoch=self.epoch, problem=error.message)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._hooks.over(self)
