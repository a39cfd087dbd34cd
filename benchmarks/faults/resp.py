"""Faults benchmark · bench process · a plain Redis client: the oracle and one producer share no code with ours."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import hiredis

CALL_TIMEOUT_S = 10.0
AWAY = ("LOADING", "BUSY", "READONLY", "MISCONF", "OOM", "TRYAGAIN", "CLUSTERDOWN")  # another try may succeed
Word = str | bytes | int | float


class ReplyError(Exception):
    """Redis answered with an error."""


class Redis:
    """One connection, made when it is needed; one call at a time. Raises OSError when Redis cannot be asked."""

    def __init__(self, path: Path, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._path, self._timeout_s = path, timeout_s
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._parser = hiredis.Reader()

    async def ask(self, *words: Word) -> Any:
        """The reply to one command. A call that raises OSError may have been carried out or not."""
        return (await self.ask_all([words]))[0]

    async def ask_all(self, commands: list[tuple[Word, ...]]) -> list[Any]:
        """The replies to a pipeline. Raises the first error among them."""
        async with self._turn:
            try:
                async with asyncio.timeout(self._timeout_s):
                    replies = await self._exchange(commands)
            except (OSError, EOFError, TimeoutError, asyncio.CancelledError) as error:
                self.close()
                if isinstance(error, asyncio.CancelledError):
                    raise
                raise ConnectionError(f"redis: {error!r}") from error
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                raise ConnectionError(str(reply)) if str(reply).startswith(AWAY) else ReplyError(str(reply))
        return replies

    def close(self) -> None:
        """Legal twice; the next call connects again."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams, self._parser = None, hiredis.Reader()

    async def _exchange(self, commands: list[tuple[Word, ...]]) -> list[Any]:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(str(self._path))
        reader, writer = self._streams
        writer.write(b"".join(_packed(words) for words in commands))
        await writer.drain()
        replies: list[Any] = []
        while len(replies) < len(commands):
            while len(replies) < len(commands) and (reply := self._parser.gets()) is not False:
                replies.append(reply)
            if len(replies) < len(commands):
                data = await reader.read(262_144)
                if not data:
                    raise EOFError("closed")
                self._parser.feed(data)
        return replies


def _packed(words: tuple[Word, ...]) -> bytes:
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
