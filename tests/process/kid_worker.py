"""A worker of a few lines, for tests of the supervisor: notes what it sees, misbehaves when a file says so."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time

from metamusesd import control
from metamusesd.board import WorkerState
from metamusesd.control import Birth
from tests.process.kid_dispatcher import mischief, note


def facts() -> dict[str, object]:
    """How the supervisor has left us."""
    fds = {
        int(name): os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}")
    }
    return {
        "fds": sorted(what.partition(":")[0] for fd, what in fds.items() if fd > 2),
        "stdin": fds[0],
        "group": os.getpgid(0),
        "cores": sorted(os.sched_getaffinity(0)),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "threads": threading.active_count(),
        "notify": os.environ.get("NOTIFY_SOCKET"),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "title": open("/proc/self/comm").read().strip(),
        "heavy": sorted(
            {"asyncio", "redis", "msgspec", "numpy", "uvloop", "threading"} & set(sys.modules) - {"threading"}
        ),
    }


def load(birth: Birth) -> None:
    """Beats until the test has seen enough; or beats once, and stands still."""
    row = birth.board.workers[birth.row]
    row.write(state=WorkerState.LOADING, beat_ns=time.monotonic_ns())
    note(birth, "loading")
    while (wanted := mischief(birth)) == "loads slowly":
        row.write(beat_ns=time.monotonic_ns())
        time.sleep(0.05)
    if wanted == "stands still while loading":
        time.sleep(600)


def main(birth: Birth) -> int:
    note(birth, "born", generation=birth.generation, **facts())
    wanted = mischief(birth)
    if wanted.startswith("exit"):
        return int(wanted.split()[1])
    if wanted == "says failed":
        control.send(
            birth.control,
            {"say": "failed", "error": {"code": "model_not_found", "message": "no file"}, "permanent": True},
        )
        return 78
    if wanted == "never ready":
        time.sleep(600)
    if "load" in wanted:
        load(birth)
    if wanted != "ignores term":
        signal.signal(signal.SIGTERM, lambda *_: (note(birth, "term"), sys.exit(0)))
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    control.send(birth.control, {"say": "ready", "model": "none"})
    row = birth.board.workers[birth.row]
    steps = 0
    ends = []
    while True:
        wanted = mischief(birth)
        if wanted == "hangs with work":
            row.write(state=WorkerState.DECODE, slots_used=1, beat_ns=time.monotonic_ns())
        elif wanted == "slow with work":
            steps += 1
            row.write(state=WorkerState.DECODE, slots_used=1, steps=steps, beat_ns=time.monotonic_ns())
        else:
            row.write(state=WorkerState.IDLE, slots_used=0, beat_ns=time.monotonic_ns())
        if wanted.startswith("later exit"):
            return int(wanted.split()[2])
        if wanted.startswith("relink"):
            control.send(birth.control, {"say": "relink", "epoch": int(wanted.split()[1])})
        if select.select([birth.control], [], [], 0.05)[0]:
            received = control.receive(birth.control)
            if received is None:
                return 1
            message, fd = received
            note(birth, message.pop("do"), **message)
            if fd is not None:
                ends.append(fd)
                with contextlib.suppress(OSError):  # this dispatcher may be dead already
                    os.write(fd, b"hello from the worker")
                    note(birth, "read", said=os.read(fd, 100).decode())
