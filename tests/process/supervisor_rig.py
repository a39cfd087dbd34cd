"""A real supervisor in a process of its own, on a temporary state directory, with the children of kid_*.py."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

PATIENCE_S = 30.0
ROOT = Path(__file__).parent.parent.parent
RUN = """
import json, sys
from metamusesd import config, log
from metamusesd.supervisor import supervisor
given = json.loads(sys.argv[1])
loaded = config.load(environ={}, overrides=given)
log.configure("info", "json")
sys.exit(supervisor.run(loaded, **json.loads(sys.argv[2])))
"""
KIDS = {"dispatcher_entry": "tests.process.kid_dispatcher", "worker_entry": "tests.process.kid_worker"}
REAL_WORKERS = {"dispatcher_entry": "tests.process.kid_feeder", "worker_entry": "metamusesd.worker.boot"}
T = TypeVar("T")


def until(look: Callable[[], T | bool | None], what: str = "") -> T:
    """Look again until there is something to see."""
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        if seen := look():
            return seen  # type: ignore[return-value]
        time.sleep(0.01)
    raise AssertionError(f"never came: {what or look}")


class Daemon:
    """One supervisor. Use it as a context manager: nothing is left behind."""

    kids = KIDS

    def __init__(self, directory: Path, environ: dict[str, str] | None = None, **overrides: object) -> None:
        self.directory = directory
        self.directory.mkdir(exist_ok=True)
        self.overrides = {
            "daemon.state_dir": str(directory), "daemon.stop_s": "1.0", "daemon.drain_s": "5.0",
            "daemon.backoff_s": "0.02", "models.smollm2.engine": "echo", "tiers.fast.workers": "2",
            "redis.url": "redis://127.0.0.1:1/0", "cache.semantic": "false",
        }  # fmt: skip
        self.overrides |= {key.replace("__", "."): str(value) for key, value in overrides.items()}
        self.environ = {**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})}
        self.log = (directory / "log").open("ab")

    def start(self) -> Daemon:
        command = self.command(sys.executable, "-c", RUN, json.dumps(self.overrides), json.dumps(self.kids))
        self.process = subprocess.Popen(
            command, env=self.environ, stderr=self.log, stdout=self.log, cwd=ROOT, pass_fds=self.pass_fds()
        )
        return self

    def command(self, *arguments: str) -> list[str]:
        """How it is started."""
        return [*arguments]

    def pass_fds(self) -> list[int]:
        """What it inherits."""
        return []

    def __enter__(self) -> Daemon:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(PATIENCE_S)

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def mischief(self, who: str, what: str) -> None:
        """From now on this child does so."""
        (self.directory / f"mischief-{who}").write_text(what)

    def notes(self, who: str = "", event: str = "") -> list[dict[str, Any]]:
        """What the children have noted."""
        try:
            lines = (self.directory / "notes").read_text().splitlines()
        except FileNotFoundError:
            return []
        notes = [json.loads(line) for line in lines]
        return [note for note in notes if who in ("", note["who"]) and event in ("", note["event"])]

    def events(self) -> list[dict[str, Any]]:
        """What the supervisor has logged."""
        lines = (self.directory / "log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE_S)
        try:
            client.connect(str(self.directory / "run/health.sock"))
        except OSError:
            client.close()
            raise
        return client

    def ask(self, request: bytes) -> bytes:
        """Raw bytes in, raw bytes out."""
        with self.connect() as client:
            client.sendall(request)
            answer = b""
            with contextlib.suppress(ConnectionResetError):  # it hung up over a request that it did not want to the end
                while data := client.recv(65536):
                    answer += data
            return answer

    def get(self, path: str) -> tuple[int, str]:
        head, _, body = self.ask(f"GET {path} HTTP/1.1\r\nHost: d\r\n\r\n".encode()).partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    def status(self) -> dict[str, Any]:
        return json.loads(self.get("/status")[1])

    def worker(self, name: str) -> dict[str, Any]:
        return next(worker for worker in self.status()["workers"] if worker["name"] == name)

    def ready(self) -> Daemon:
        """Wait until /readyz says so and every worker is ready."""

        def look() -> bool:
            with contextlib.suppress(OSError, IndexError, ValueError):
                status = self.status()
                return status["state"] == "ready" and all(worker["status"] == "ready" for worker in status["workers"])
            assert self.process.poll() is None, (self.directory / "log").read_text()
            return False

        until(look, "ready")
        return self

    def children(self) -> dict[str, int]:
        """name → pid of everybody who lives."""
        status = self.status()
        everybody = [status["redis"], status["dispatcher"], *status["workers"]]
        return {child["name"]: child["pid"] for child in everybody if child.get("pid")}


class Feeder(Daemon):
    """With real echo workers, and a dispatcher that gives them what `order` says."""

    kids = REAL_WORKERS

    def order(self, row: int, *queries: str) -> None:
        """Jobs for the worker of this row, at once."""
        draft = self.directory / f"draft-{row}"
        draft.write_text("".join(f"{query}\n" for query in queries))
        draft.replace(self.directory / f"orders-{row}")

    def tokens(self, row: int = 0) -> int:
        """How many have come from this worker."""
        return sum(note["row"] == row for note in self.notes("dispatcher", "token"))

    def unlinked(self) -> dict[str, Any]:
        """The first worker's death that the dispatcher was told of."""
        return until(lambda: self.notes("dispatcher", "unlink"), "unlink")[0]


@contextlib.contextmanager
def watched(pids: list[int]) -> Iterator[Callable[[], bool]]:
    """pidfds of processes; the yielded function waits until all are gone and says whether they were within a second."""
    fds = [os.pidfd_open(pid) for pid in pids]

    def gone() -> bool:
        end_s = time.monotonic() + 1.0
        return all(select.select([fd], [], [], max(0.0, end_s - time.monotonic()))[0] for fd in fds)

    try:
        yield gone
    finally:
        for fd in fds:
            os.close(fd)


def kill(pid: int, signum: int = signal.SIGKILL) -> None:
    os.kill(pid, signum)
