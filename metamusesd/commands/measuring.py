"""Stage 0 · command line · one model's figures on its cores, by a process of its own (engines/measure.py).

DANGER: Ctrl-C may come while a process is being started, before anybody could end it. Whatever is started here and in
formats.py therefore dies with us: requantizing goes on for minutes, into files that nobody sees any more.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from metamusesd.control import WorkerSpec
from metamusesd.engines.base import EngineSpec
from metamusesd.errors import EngineFailed

PROGRAM = "metamusesd.engines.measure"
PR_SET_PDEATHSIG = 1


def figures(worker: WorkerSpec, spec: EngineSpec, prompts: Sequence[int], streams: Sequence[int]) -> dict[str, Any]:
    """In the form of rates.json (supervisor/measured.py). Raises EngineFailed."""
    found: dict[str, Any] = {
        "model": worker.model, "digest": spec.model_digest, "engine": spec.engine, "cores": worker.threads,
        "on": list(worker.cores), "gpus": list(worker.gpus), "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "prefill": {}, "decode": {},
    }  # fmt: skip
    plan = {"spec": asdict(spec), "cores": list(worker.cores), "prompts": list(prompts), "streams": list(streams)}
    for row in _rows(worker, plan):
        _note(found, row)
    if "rss_bytes" not in found:
        raise EngineFailed(f"{worker.model}: the process that measured it died; try one model alone, or fewer streams")
    return found


def dying_with_us() -> Callable[[], None]:
    """For `preexec_fn`. Start from the main thread: the kernel sends the signal when the thread that forked ends."""
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return bind


def _note(found: dict[str, Any], row: dict[str, Any]) -> None:
    if "problem" in row:
        raise EngineFailed(f"{found['model']}: {row['problem']}")
    if "prompt" in row:
        found["prefill"][str(row["prompt"])] = round(row["tokens_s"], 1)
    elif "streams" in row:
        found["decode"][str(row["streams"])] = round(row["tokens_s"], 1)
    else:
        found |= {name: round(value, 2) for name, value in row.items()}


def _rows(worker: WorkerSpec, plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the measuring process says, line by line; it is told to end when nobody listens any more."""
    environ = dict(os.environ)
    if worker.gpus:
        environ |= {"CUDA_VISIBLE_DEVICES": ",".join(worker.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    command = [sys.executable, "-m", PROGRAM]
    with subprocess.Popen(  # a process group of its own: Ctrl-C is ours to pass on
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, process_group=0,
        preexec_fn=dying_with_us(),
    ) as child:  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(plan))
            child.stdin.close()
            for line in child.stdout:
                row = json.loads(line)
                _say(worker, row)
                yield row
        finally:
            child.terminate()


def _say(worker: WorkerSpec, row: dict[str, Any]) -> None:
    if sys.stderr.isatty():
        words = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, int | float))
        print(f"\r\x1b[K\x1b[2m{worker.model}: {words}\x1b[0m", end="", file=sys.stderr, flush=True)
        if "rss_bytes" in row:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
