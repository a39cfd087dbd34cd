"""Stage 4 · vectors process · serves the semantic cache: every question is a task, every answer goes to who asked.

the dispatcher's pipe ─┐                     ┌─ Look ─► Found, unless it is too late
                       ├─► ASK ─► question ──┼─ Keep, Withdraw, Complain ─► nothing
operators' socket ─────┘                     ├─ Embed ─► Embedded, or Leave ─► nothing
                                             └─ Forget, Weigh, Count ─► Told, or Told {"error"}
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from metamusesd.cache.semantic import Semantic
from metamusesd.errors import CacheError
from metamusesd.log import Logger
from metamusesd.vectors.embed import embedded
from metamusesd.vectors.talk import Talk
from metamusesd.wire import (
    Answer,
    Complain,
    Count,
    Embed,
    Embedded,
    Forget,
    Found,
    Keep,
    Leave,
    Look,
    Question,
    Told,
    Weigh,
    Withdraw,
)

FAULT = {"code": "internal_error", "message": "the vectors process failed at this question", "retryable": False}


class Vectors:
    """Call everything on the event loop."""

    def __init__(self, semantic: Semantic, log: Logger) -> None:
        self._semantic, self._log = semantic, log
        self._tasks: set[asyncio.Task[None]] = set()
        self._embeds: dict[tuple[Talk, int], asyncio.Task[None]] = {}

    def ask(self, talk: Talk, question: Question) -> None:
        """Begin with it; the answer, if there is one, goes to `talk`."""
        if type(question) is Leave:
            if (left := self._embeds.get((talk, question.handle))) is not None:
                left.cancel()
            return
        task = asyncio.get_running_loop().create_task(self._serve(talk, question))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if type(question) is Embed:
            key = talk, question.handle
            self._embeds[key] = task
            task.add_done_callback(lambda _: self._embeds.pop(key, None))

    async def close(self) -> None:
        """Drop what is at work."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)

    async def _serve(self, talk: Talk, question: Question) -> None:
        try:
            answer = await self._answer(question)
        except CacheError as error:
            answer = _told(question, {"error": error.to_dict()})
        except Exception as error:  # a mistake of ours costs one question, not the process
            self._log.error(
                "a question failed", question=type(question).__name__, problem=f"{type(error).__name__}: {error}"
            )
            answer = _told(question, {"error": FAULT})
        if answer is not None:
            talk.say(answer)

    async def _answer(self, question: Question) -> Answer | None:
        """The answer; None: there is none. Raises CacheError."""
        semantic = self._semantic
        match question:
            case Look():
                return await semantic.look_up(question)
            case Keep():
                await semantic.keep([question])
            case Withdraw():
                await semantic.withdraw(question)
            case Complain():
                await semantic.complain(question)
            case Forget():
                return _told(question, {"removed": await semantic.forget(question)})
            case Weigh():
                return _told(question, await semantic.weigh(question))
            case Count():
                return _told(question, await semantic.count())
            case Embed():
                return await embedded(semantic.vectorizer, question)
        return None


def _told(question: Question, data: Mapping[str, Any]) -> Answer | None:
    """In the form that whoever asked expects."""
    match question:
        case Look():
            return Found(question.handle, "failed", reason=str(data["error"]["message"]))
        case Embed():
            return Embedded(question.handle, error=dict(data["error"]))
        case Forget() | Weigh() | Count():
            return Told(question.handle, msgspec.json.encode(data))
    return None
