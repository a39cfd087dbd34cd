"""Faults benchmark · bench process · a power cut for the embedded Redis: it dies, and its file loses its end.

SIGKILL alone takes nothing that Redis has handed to the kernel. So the supervisor stands still for a moment, Redis is
killed, and the end of its append-only file that `everysec` need not have brought to the disk yet is cut off.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from pathlib import Path

LOOK_S, KEEP_S = 0.05, 3.0
GRACE_S = 5.0


class Power:
    """Watches how long the file was. `cut` raises OSError when there is nothing to cut."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lengths: deque[tuple[float, Path, int]] = deque(maxlen=int(KEEP_S / LOOK_S))
        self._watch = asyncio.create_task(self._look())

    async def cut(self, supervisor: int, redis: int, seconds: float) -> int:
        """Lose the last `seconds`; returns how many bytes that were."""
        os.kill(supervisor, signal.SIGSTOP)
        try:
            pidfd = os.pidfd_open(redis)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            gone = asyncio.Event()
            asyncio.get_running_loop().add_reader(pidfd, gone.set)
            try:
                async with asyncio.timeout(GRACE_S):
                    await gone.wait()
            finally:
                asyncio.get_running_loop().remove_reader(pidfd)
                os.close(pidfd)
            return self._truncate(seconds)
        finally:
            os.kill(supervisor, signal.SIGCONT)

    def close(self) -> None:
        self._watch.cancel()

    def _truncate(self, seconds: float) -> int:
        path = self._file()
        limit_s = time.monotonic() - seconds
        known = [length for at, which, length in self._lengths if which == path and at <= limit_s]
        if not known:
            return 0  # a new file: nobody knows how long it was
        lost = path.stat().st_size - known[-1]
        os.truncate(path, known[-1])
        return lost

    def _file(self) -> Path:
        """The file that grows: of Redis 7 the newest increment."""
        files = [path for path in self._folder.rglob("*.aof") if ".base." not in path.name]
        if not files:
            raise FileNotFoundError("no append-only file")
        return max(files, key=lambda path: path.stat().st_mtime)

    async def _look(self) -> None:
        while True:
            try:
                path = self._file()
                self._lengths.append((time.monotonic(), path, path.stat().st_size))
            except FileNotFoundError:
                pass
            await asyncio.sleep(LOOK_S)
