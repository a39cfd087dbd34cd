"""A whole daemon for tests: `metamusesd run` on echo workers and an embedded Redis, and the oracle over its jobs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metamusesd.client import Client
from metamusesd.job import TERMINAL, Result
from metamusesd.queues.base import JobEvent

PATIENCE_S = 20.0

CONFIG = """
[daemon]
state_dir = "{folder}/s"
hang_s = 1.0
backoff_s = 0.01
drain_s = {drain_s}
restart_limit = 20
[redis]
appendfsync = "always"
[cache]
enabled = false
[queue]
lease_s = 3.0
[models.echo]
engine = "echo"
context = 100000
[tiers.fast]
model = "echo"
workers = 2
cores = 1
slots = 8
"""


class Daemon:
    """One daemon in its own directory. `start` again after its death is what a restarting parent does."""

    awake: tuple[str, ...] = ("ready",)  # what its workers are when it has started

    def __init__(self, drain_s: float = 10.0) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mm-"))
        self.config = self.folder / "c.toml"
        self.drain_s = drain_s
        self.config.write_text(self.text())
        self.start()

    def text(self) -> str:
        """Its configuration."""
        return CONFIG.format(folder=self.folder, drain_s=self.drain_s)

    def start(self) -> None:
        self.log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(self.command(), stdout=self.log, stderr=self.log)
        self.until(
            lambda status: status["state"] == "ready" and all(w["status"] in self.awake for w in status["workers"])
        )

    def command(self) -> list[str]:
        return [sys.executable, "-m", "metamusesd", "run", "--config", str(self.config)]

    def get(self, path: str) -> str:
        """What a path of the health socket says. OSError: there is none."""
        with socket.socket(socket.AF_UNIX) as plug:
            plug.settimeout(5)
            plug.connect(str(self.folder / "s/run/health.sock"))
            plug.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            data = b"".join(iter(lambda: plug.recv(65536), b""))
        return data.partition(b"\r\n\r\n")[2].decode()

    def status(self) -> dict[str, Any]:
        """/status of the health socket; empty while there is none."""
        try:
            return dict(json.loads(self.get("/status")))
        except (OSError, ValueError):
            return {}

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Look again until the status says so."""
        deadline = time.monotonic() + PATIENCE_S
        while not ((status := self.status()) and condition(status)):
            assert time.monotonic() < deadline, f"waited in vain; {status}\n{self.tail()}"
            assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}\n{self.tail()}"
            time.sleep(0.02)
        return status

    def tail(self) -> str:
        return (self.folder / "log").read_text()[-6000:]

    def worker_pids(self) -> list[int]:
        return [worker["pid"] for worker in self.status()["workers"]]

    def pid(self, name: str) -> int:
        """Of `dispatcher`, `redis`, `supervisor` or a worker."""
        if name == "supervisor":
            return self.process.pid
        status = self.status()
        if name in ("dispatcher", "redis"):
            return int(status[name]["pid"])
        return next(int(worker["pid"]) for worker in status["workers"] if worker["name"] == name)

    def client(self) -> Client:
        return Client.from_env(self.config, {})

    def signal(self, name: str, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid(name), number)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE_S)
        self.log.close()
        return code

    def died(self) -> None:
        """After its SIGKILL."""
        self.process.wait(PATIENCE_S)
        self.log.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


async def submit_many(client: Client, count: int, query: str = "one two three !tokens=60 !delay=10ms") -> list[str]:
    """Jobs whose ids say their order."""
    receipts = await asyncio.gather(*(client.submit({"user_query": query, "id": f"j{n}"}) for n in range(count)))
    return [receipt.id for receipt in receipts]


async def running(client: Client, ids: list[str], wanted: int) -> None:
    """Until so many of them were claimed for a worker."""
    async with asyncio.timeout(PATIENCE_S):
        while sum([await _begun(client, id) for id in ids]) < wanted:
            await asyncio.sleep(0.01)


async def _begun(client: Client, id: str) -> bool:
    if (await client.status(id)).state != "running":
        return False
    return any(event.kind == "started" for event in await client.history(id))


async def ended(client: Client, ids: list[str]) -> list[Result]:
    """All results, in order."""
    return await asyncio.gather(*(client.wait(id, PATIENCE_S) for id in ids))


async def follow(client: Client, id: str) -> tuple[str, list[JobEvent]]:
    """What a reader sees: the text since the last restart, and every event."""
    text, events = "", []
    async for event in client.stream(id):
        events.append(event)
        if event.kind == "restarted":
            text = ""
        elif event.kind == "token":
            assert event.offset == len(text), f"a gap or a double at {event.offset} of {id}"
            text += event.text
    return text, events


async def judge(daemon: Daemon, results: list[Result], text: str) -> None:
    """The oracle: every job is done, once, with its whole text, also in its own event stream."""
    queue = daemon.client()._queue
    await queue.open()
    try:
        for result in results:
            assert (result.state, result.content) == ("done", text), result
            events = await queue.events(result.request_id)
            assert [event.kind in TERMINAL for event in events].count(True) == 1
            written = ""
            for event in events:
                if event.kind == "restarted":
                    written = ""
                elif event.kind == "token":
                    assert event.offset == len(written)
                    written += event.text
            assert written == text
    finally:
        await queue.close()
