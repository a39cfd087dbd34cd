"""Stage 9 · command line · what a job's submitter sees while the job waits: its place and when it may start.

One line on standard error. On a terminal it is rewritten and wiped off before anything else is written; elsewhere a
new line is printed when the place has changed, at most one a second.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from typing import Any

from metamusesd.client import Client
from metamusesd.errors import JobGone, QueueUnavailable
from metamusesd.job import TERMINAL
from metamusesd.queues.base import INGRESS, JobEvent, Position

ASK_AFTER_S = 1.0  # a job that has waited so long without a word of its place: ask for it once
PLAIN_EVERY_S = 1.0


class WaitLine:
    """Shows the places of one job until `stop`. `quiet`: shows nothing."""

    def __init__(self, client: Client, id: str, *, quiet: bool = False) -> None:
        self._client, self._id, self._quiet = client, id, quiet
        self._shown = ""
        self._at_s = -PLAIN_EVERY_S
        self._asking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """The job waits, for the first time or again: ask for its place if nothing is heard for a while."""
        self.stop()
        if not self._quiet:
            self._asking = asyncio.create_task(self._ask())

    def hear(self, event: JobEvent) -> None:
        """Any event of the job: a new place, or the end of waiting."""
        if event.kind == "queued":
            self._show(place_of_event(event))
        elif event.kind in ("started", "token") or event.kind in TERMINAL:
            self.stop()

    def stop(self) -> None:
        """Wipe the line off. Legal twice."""
        task, self._asking = self._asking, None
        if task is not None:
            task.cancel()
        if self._shown and sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        self._shown = ""

    async def _ask(self) -> None:
        await asyncio.sleep(ASK_AFTER_S)
        with suppress(JobGone, QueueUnavailable):
            position = await self._client.position(self._id)
            if not self._shown and position.queue:
                self._show(place_of(position))

    def _show(self, text: str) -> None:
        if self._quiet or not text or text == self._shown:
            return
        if sys.stderr.isatty():
            print(f"\r\x1b[K\x1b[2m{text}\x1b[0m", end="", file=sys.stderr, flush=True)
        elif (now_s := time.monotonic()) - self._at_s >= PLAIN_EVERY_S:
            self._at_s = now_s
            print(text, file=sys.stderr, flush=True)
        else:
            return
        self._shown = text


def place_of(position: Position) -> str:
    """`waiting for fast, 3 ahead · starts in about 2.0 s, within 5.0 s in 9 cases of 10`."""
    where = "waiting to be routed" if position.queue == INGRESS else f"waiting for {position.queue}"
    text = f"{where}, {position.ahead or 'none'} ahead"
    if position.start_p50_ms is not None:
        text += f" · starts in about {_seconds(position.start_p50_ms)}"
    if position.start_p90_ms is not None:
        text += f", within {_seconds(position.start_p90_ms)} in 9 cases of 10"
    return text


def place_of_event(event: JobEvent) -> str:
    """The same from the data of a `queued` event; empty when it says nothing that we know."""
    try:
        data = json.loads(event.data)
        return place_of(Position(
            event.id, "ready", str(data["queue"]), int(data["ahead"]), _known(data, "start_p50_ms"),
            _known(data, "start_p90_ms"),
        ))  # fmt: skip
    except (ValueError, TypeError, LookupError):
        return ""


def _known(data: dict[str, Any], name: str) -> int | None:
    value = data.get(name)
    return None if value is None or int(value) < 0 else int(value)


def _seconds(time_ms: int) -> str:
    if time_ms < 10_000:
        return f"{time_ms / 1000:.1f} s"
    seconds = round(time_ms / 1000)
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min {seconds % 60} s"
