"""All stages · dispatcher, vectors · what a child with an event loop is made of: its tasks, the supervisor's words, its
end. Everything here runs on the loop's thread."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from metamusesd import control
from metamusesd.control import EXIT_DIED, Birth
from metamusesd.log import Logger, flush

STOP_S = 1.0


class Child:
    """One child process, made inside its running loop. `exit` gets its exit code; the first one counts."""

    def __init__(self, birth: Birth, log: Logger) -> None:
        self.exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._channel, self._log = birth.control, log
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, heard: Callable[[dict[str, Any], int | None], None], asked_to_leave: Callable[[], None]) -> None:
        """From now on `heard` gets each message of the supervisor, and closes its descriptor or gives it on; SIGTERM
        calls `asked_to_leave`. When the supervisor is gone, so is this process, soon."""
        loop = asyncio.get_running_loop()
        self._channel.setblocking(False)
        loop.add_reader(self._channel.fileno(), self._receive, heard)
        loop.add_signal_handler(signal.SIGTERM, asked_to_leave)

    def say(self, message: dict[str, Any]) -> bool:
        """To the supervisor. False: it is gone or does not read."""
        return control.send(self._channel, message)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run it beside the others. If it fails, it takes the process along: a fresh one knows better than half a
        one."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def leave(self, code: int) -> None:
        """End with this exit code."""
        if not self.exit.done():
            self.exit.set_result(code)

    async def stop(self) -> None:
        """Cancel what still runs, and wait for it a moment. The log tells what it has held."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_S)
        flush()

    def _receive(self, heard: Callable[[dict[str, Any], int | None], None]) -> None:
        try:
            received = control.receive(self._channel)
        except BlockingIOError:
            return
        except OSError:
            received = None
        if received is None:
            self._log.error("the supervisor is gone")
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self.leave(EXIT_DIED)
            return
        heard(*received)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("a loop failed", loop=task.get_name(), problem=f"{type(error).__name__}: {error}")
            self.leave(EXIT_DIED)
