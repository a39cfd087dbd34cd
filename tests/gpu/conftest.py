"""Tests on a real GPU. Without one they are skipped and say so; `make test-gpu` runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metamusesd.config import DEMO_MODEL
from tests.process.daemon_rig import Daemon

MODELS = Path(os.environ.get("MODELS_DIR") or Path(__file__).parents[2] / "models")
MIB = 1 << 20
CONTEXT_BYTES = 600 * MIB  # what the hog has beside what it takes, about
CONFIG = """
[daemon]
state_dir = "{folder}/s"
models_dir = "{models}"
backoff_s = 0.05
[cache]
enabled = false
[models.m]
file = "{file}"
context = 1024
[tiers.fast]
model = "m"
gpus = [0]
slots = 4
"""
HOG = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
context, room = ctypes.c_void_p(), ctypes.c_void_p()
for error in (cuda.cuInit(0), cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), cuda.cuCtxSetCurrent(context),
              cuda.cuMemAlloc_v2(ctypes.byref(room), ctypes.c_size_t(int(sys.argv[1])))):
    assert error == 0, error
print("taken", flush=True)
sys.stdin.read()
"""


def missing() -> str:
    """What keeps these tests from running; empty: nothing."""
    try:
        import llama_cpp
        import pynvml
    except ImportError as error:
        return f"{error}: pip install 'metamusesd[llamacpp,gpu]'"
    try:
        pynvml.nvmlInit()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return f"no NVIDIA driver: {error}"
    if not llama_cpp.llama_supports_gpu_offload():
        return "llama-cpp-python was built without CUDA: see docs/engines.md"
    return "" if (MODELS / DEMO_MODEL).is_file() else f"{DEMO_MODEL} is not there: run `make models`"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    own = [item for item in items if here in item.path.parents]
    if own and (reason := missing()):
        for item in own:
            item.add_marker(pytest.mark.skip(reason=reason))


class OnGpu(Daemon):
    """A daemon with SmolLM2 on GPU 0; `more` is appended to its configuration."""

    more = ""

    def text(self) -> str:
        return CONFIG.format(folder=self.folder, models=MODELS, file=DEMO_MODEL) + self.more

    def again(self) -> None:
        """Start it, and do not wait until it is ready."""
        self.log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(self.command(), stdout=self.log, stderr=self.log)


class Hog:
    """A process that holds memory of GPU 0, all but so many bytes of what is free."""

    def __init__(self, leave: int) -> None:
        free = memory()[1] - CONTEXT_BYTES - leave
        self._child = subprocess.Popen(
            [sys.executable, "-c", HOG, str(free)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Hog:
        assert self._child.stdout is not None and self._child.stdout.readline() == "taken\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self._child.kill()
        self._child.communicate()  # closes the pipes as well


def memory() -> tuple[int, int]:
    """(total, free) bytes of GPU 0, as the driver says."""
    import pynvml

    pynvml.nvmlInit()
    try:
        info = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0))
    finally:
        pynvml.nvmlShutdown()
    return int(info.total), int(info.free)
