"""Faults benchmark · bench process · the daemon under attack, its restarting parent, and what /proc says about it.

Every process of the family inherits one variable of our own, so that an orphan is found whoever its parent is now.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import descendants
from metamusesd.client import Client

MARK = "METAMUSESD_FAULTS_RUN"
START_S, STOP_S, STATUS_S = 60.0, 30.0, 2.0
DIES_WITH_US = ("setpriv", "--pdeathsig", "TERM")

CONFIG = """
[daemon]
state_dir = "{folder}/s"
hang_s = 1.0
hang_least_s = 0.5
backoff_s = 0.01
backoff_most_s = 0.5
drain_s = 3.0
restart_limit = 1000
[redis]
appendfsync = "{appendfsync}"
[cache]
semantic = false
[queue]
lease_s = 3.0
result_ttl_s = 86400
retry_s = 0.1
retry_most_s = 0.5
[models.echo]
engine = "echo"
context = 300000
[tiers.fast]
model = "echo"
workers = 2
slots = 4
reserve_slots = 2
[tiers.medium]
model = "echo"
workers = 1
slots = 4
reserve_slots = 2
"""


class Family:
    """One daemon in its own directory; `start` after its death is what a restarting parent does."""

    def __init__(self, appendfsync: str = "always", config: str = CONFIG, **more: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mmf-"))
        self.config = self.folder / "c.toml"
        self.config.write_text(config.format(folder=self.folder, appendfsync=appendfsync, **more))
        self.redis_socket = self.folder / "s/run/redis.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    async def start(self) -> None:
        """Start it and wait until every worker is ready. RuntimeError with the log's end when it does not get there."""
        command = [*DIES_WITH_US, sys.executable, "-m", "metamusesd", "run", "--config", str(self.config)]
        environ = dict(os.environ) | {MARK: str(self.folder)}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        self.starts += 1
        await self.until_ready(START_S)

    async def until_ready(self, limit_s: float) -> dict[str, Any]:
        """The status once everything is ready."""
        end_s = time.monotonic() + limit_s
        while time.monotonic() < end_s:
            status = await self.status()
            if status and status["state"] == "ready" and all(kid["status"] == "ready" for kid in status["workers"]):
                return status
            if self.process is None or self.process.poll() is not None:
                break
            await asyncio.sleep(0.02)
        code = self.process and self.process.poll()
        raise RuntimeError(f"the daemon did not become ready within {limit_s:g} s (exit: {code})\n{self.tail()}")

    async def status(self) -> dict[str, Any]:
        """/status; empty when nobody answers."""
        try:
            async with asyncio.timeout(STATUS_S):
                reader, writer = await asyncio.open_unix_connection(str(self.folder / "s/run/health.sock"), limit=2**20)
                try:
                    writer.write(b"GET /status HTTP/1.0\r\n\r\n")
                    return dict(json.loads((await reader.read()).partition(b"\r\n\r\n")[2]))
                finally:
                    writer.close()
        except (OSError, ValueError, TimeoutError):
            return {}

    async def pids(self) -> dict[str, int]:
        """Name → pid of every member that lives now; only the supervisor when nobody answers."""
        status = await self.status()
        found = {"supervisor": self.process.pid if self.process else 0}
        if status:
            kids = [status["redis"], status["dispatcher"], *status["workers"]]
            found |= {kid["name"]: kid["pid"] for kid in kids if kid.get("pid")}
        return found

    def marked(self) -> set[int]:
        """All living processes of any generation of the family, wherever they hang."""
        return {pid for pid in _numbers() if f"{MARK}={self.folder}".encode() in _environ(pid)}

    def kids(self) -> list[int]:
        """All descendants of the supervisor."""
        return descendants(self.process.pid) if self.process else []

    async def buried(self, pids: set[int], limit_s: float = 5.0) -> set[int]:
        """Those of `pids` that still live after `limit_s`."""
        end_s = time.monotonic() + limit_s
        while (left := pids & self.marked()) and time.monotonic() < end_s:
            await asyncio.sleep(0.05)
        return left

    async def stop(self, limit_s: float = STOP_S) -> int:
        """SIGTERM, and its exit code; 137 when it had to be killed."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        await self.gone(limit_s)
        return 137 if self.process.returncode == -signal.SIGKILL else int(self.process.returncode)

    async def gone(self, limit_s: float = STOP_S) -> None:
        """Reap the supervisor; kill it when it does not leave."""
        assert self.process is not None
        end_s = time.monotonic() + limit_s
        while self.process.poll() is None:
            if time.monotonic() > end_s:
                self.process.kill()
            await asyncio.sleep(0.02)

    def client(self) -> Client:
        return Client.from_env(self.config, {})

    def tail(self, size: int = 6000) -> str:
        return (self.folder / "log").read_text(errors="replace")[-size:]

    def close(self, *, keep: bool = False) -> None:
        """End whatever is left; remove the directory unless it is to be looked at."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.marked():
            os.kill(pid, signal.SIGKILL)
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def descriptors(pid: int) -> int:
    """How many it has open; 0 when it is gone."""
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0


def rss_mb(pid: int) -> float:
    """Resident memory; 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _numbers() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environ(pid: int) -> bytes:
    """What it was started with; empty for a zombie."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
