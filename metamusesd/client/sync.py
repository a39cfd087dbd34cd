"""Stages 1 and 9 · producer · the client for code without an event loop.

    with SyncClient.from_env() as client:
        result = client.execute({"user_query": "What is a muse?"})

One private thread runs the loop of one asynchronous client. Any number of threads may call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from metamusesd.client.client import SUBMIT_TIMEOUT_S, Client, Request
from metamusesd.config import Config
from metamusesd.job import Result
from metamusesd.queues.base import Depth, Host, JobEvent, JobView, Position, Queue, Receipt

T = TypeVar("T")


class SyncClient:
    """`Client`, blocking. Use it as a context manager, or `open` and `close` it."""

    def __init__(self, url: str | None = None, prefix: str | None = None, queue: Queue | None = None) -> None:
        """As Client."""
        self._begin(lambda: Client(url, prefix, queue))

    @classmethod
    def from_env(cls, path: str | Path | None = None, environ: Mapping[str, str] | None = None) -> Self:
        """As Client."""
        self = cls.__new__(cls)
        self._begin(lambda: Client.from_env(path, environ))
        return self

    @classmethod
    def from_config(cls, loaded: Config) -> Self:
        """As Client."""
        self = cls.__new__(cls)
        self._begin(lambda: Client.from_config(loaded))
        return self

    def _begin(self, make: Callable[[], Client]) -> None:
        self._make = make
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def open(self) -> None:
        """Start the thread and connect. Raises QueueUnavailable, and then has left nothing behind."""
        if self._thread is not None:
            return
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="metamusesd-client", daemon=True)
        self._thread.start()
        try:
            self._call(self._open())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """As Client; ends the thread. Legal twice."""
        loop, thread, client = self._loop, self._thread, self._client
        if loop is None or thread is None:
            return
        if client is not None:
            self._call(client.close())
        self._client = self._loop = self._thread = None
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def submit(self, request: Request, timeout_s: float = SUBMIT_TIMEOUT_S, *, watch: bool = True) -> Receipt:
        """As Client."""
        return self._call(self._opened.submit(request, timeout_s, watch=watch))

    def stream(self, id: str) -> Iterator[JobEvent]:
        """As Client."""
        events = self._opened.stream(id)
        try:
            while (event := self._call(_next(events))) is not None:
                yield event
        finally:
            if self._client is not None:
                self._call(events.aclose())

    def wait(self, id: str, timeout_s: float | None = None) -> Result:
        """As Client."""
        return self._call(self._opened.wait(id, timeout_s))

    def execute(self, request: Request, timeout_s: float | None = None) -> Result:
        """As Client."""
        return self._call(self._opened.execute(request, timeout_s))

    def embed(
        self, texts: Sequence[str], timeout_s: float | None = None, *, truncate: bool = False
    ) -> list[list[float]]:
        """As Client."""
        return self._call(self._opened.embed(texts, timeout_s, truncate=truncate))

    def cancel(self, id: str) -> str:
        """As Client."""
        return self._call(self._opened.cancel(id))

    def status(self, id: str) -> JobView:
        """As Client."""
        return self._call(self._opened.status(id))

    def position(self, id: str) -> Position:
        """As Client."""
        return self._call(self._opened.position(id))

    def depths(self, queues: Sequence[str]) -> list[Depth]:
        """As Client."""
        return self._call(self._opened.depths(queues))

    def hosts(self) -> list[Host]:
        """As Client."""
        return self._call(self._opened.hosts())

    def dead(self, count: int = 100) -> list[JobView]:
        """As Client."""
        return self._call(self._opened.dead(count))

    def complain(self, id: str) -> str:
        """As Client."""
        return self._call(self._opened.complain(id))

    def revive(self, id: str) -> str:
        """As Client."""
        return self._call(self._opened.revive(id))

    def drop(self, id: str) -> str:
        """As Client."""
        return self._call(self._opened.drop(id))

    @property
    def _opened(self) -> Client:
        if self._client is None:
            raise RuntimeError("the client is not open")
        return self._client

    async def _open(self) -> None:
        self._client = self._make()
        await self._client.__aenter__()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the client's loop. An interrupt of this thread (Ctrl-C) ends the work as well."""
        if self._loop is None:
            work.close()
            raise RuntimeError("the client is not open")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _next(events: AsyncGenerator[JobEvent]) -> JobEvent | None:
    return await anext(events, None)
