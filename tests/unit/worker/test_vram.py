"""The memory of GPUs, as a driver that the test plays tells it: no GPU is needed here, and none is proven."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from metamusesd.board import Board
from metamusesd.engines.base import EngineSpec
from metamusesd.engines.llamacpp.footprint import GPU_PROCESS_BYTES, gpu_bytes
from metamusesd.errors import GpuFull, ModelLoadFailed
from metamusesd.log import get_logger
from metamusesd.worker.row import Row
from metamusesd.worker.vram import STEADY_S, Gpus

GIB, LOG = 1 << 30, get_logger("test")


@dataclass
class Driver:
    """As the module `pynvml`: two GPUs of 80 GiB. `used` by index."""

    used: dict[int, int] = field(default_factory=lambda: {0: 0, 1: 0})
    away: bool = False

    def nvmlInit(self) -> None:
        if self.away:
            raise RuntimeError("Driver Not Loaded")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index not in self.used:
            raise RuntimeError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return {"GPU-aa": 0, "GPU-bb": 1}[uuid]

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return ("GPU-aa", "GPU-bb")[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=80 * GIB, used=self.used[handle])


class Clock:
    """Moves when somebody sleeps; `then` happens at that moment."""

    def __init__(self) -> None:
        self.s = 0.0
        self.then: dict[float, Callable[[], object]] = {}

    def now(self) -> float:
        return self.s

    def sleep(self, seconds: float) -> None:
        self.s += seconds
        for at in [at for at in self.then if at <= self.s]:
            self.then.pop(at)()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    return driver


def wait(gpus: Gpus, needed: int, clock: Clock, patience_s: float = 60.0) -> None:
    gpus.wait_for_room(needed, patience_s, LOG, clock.now, clock.sleep)


def test_a_load_waits_until_its_predecessor_is_gone(driver: Driver) -> None:
    """The driver frees the memory a while after the process has died, piece by piece."""
    clock, driver.used[1] = Clock(), 70 * GIB
    clock.then = {4.0: lambda: driver.used.update({1: 40 * GIB}), 8.0: lambda: driver.used.update({1: GIB})}
    wait(Gpus(["GPU-bb"], LOG), 60 * GIB, clock)
    assert clock.s == 8.0


def test_memory_that_nobody_frees_is_named(driver: Driver) -> None:
    """After some seconds without a change, with both figures; a model that never fits, at once."""
    clock, driver.used[0] = Clock(), 70 * GIB
    with pytest.raises(GpuFull, match="GPU 0: 20480 MiB are needed, 10240 MiB are free"):
        wait(Gpus(["0"], LOG), 20 * GIB, clock)
    assert STEADY_S < clock.s < STEADY_S + 1
    with pytest.raises(ModelLoadFailed, match="it has 81920 MiB in all"):
        wait(Gpus(["0"], LOG), 100 * GIB, Clock())


def test_several_gpus_count_together(driver: Driver) -> None:
    """A model that is split over two."""
    driver.used = {0: 10 * GIB, 1: 20 * GIB}
    gpus, clock = Gpus(["0", "1"], LOG), Clock()
    wait(gpus, 120 * GIB, clock)
    assert (clock.s, gpus.memory().used, gpus.memory().total) == (0.0, 30 * GIB, 160 * GIB)


def test_a_worker_names_its_gpus_by_uuid(driver: Driver) -> None:
    """However they were named: another order of the devices is nothing to it."""
    assert Gpus(["1", "0"], LOG).uuids() == ["GPU-bb", "GPU-aa"]
    assert Gpus([], LOG).uuids() == []


def test_loads_take_turns_on_a_gpu(driver: Driver, tmp_path: Path) -> None:
    """A second worker waits until the first has loaded, though not for ever; one on another GPU does not."""
    clock = Clock()
    first = contextlib.ExitStack()
    first.enter_context(Gpus(["0"], LOG).turn(tmp_path, 5.0))
    with Gpus(["1"], LOG).turn(tmp_path, 0.0):
        pass
    with pytest.raises(GpuFull, match="another worker has been loading"):
        Gpus(["GPU-aa"], LOG).turn(tmp_path, 5.0, clock.now, clock.sleep).__enter__()
    clock.then = {clock.s + 2.0: first.close}
    with Gpus(["0"], LOG).turn(tmp_path, 5.0, clock.now, clock.sleep):
        assert not clock.then


def test_without_a_driver_nothing_is_asked(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """No driver, no such GPU, no library: the load itself finds out."""
    for names in (["7"], ["0"]):
        driver.away = names == ["0"]
        gpus = Gpus(names, LOG)
        wait(gpus, 10**15, Clock())
        assert not gpus and gpus.memory().total == 0
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert not Gpus(["0"], LOG)


def test_the_board_shows_it(driver: Driver) -> None:
    """Once a second, with the resident memory."""
    driver.used[0] = 3 * GIB
    block = Board(1).workers[0]
    Row(block, Gpus(["0"], LOG)).loading(0.5)
    assert (block.get("vram_used_bytes"), block.get("vram_total_bytes")) == (3 * GIB, 80 * GIB)


def test_what_a_model_needs() -> None:
    """Its file and its cells, all of them or the layers' share, and the libraries' own."""
    path = Path(os.environ.get("MODELS_DIR", "models")) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    spec = EngineSpec("llamacpp", "m", str(path), gpu_layers=9999, context=2048, kv_cells=2048)
    whole, half = gpu_bytes(spec), gpu_bytes(EngineSpec("llamacpp", "m", str(path), gpu_layers=15, kv_cells=2048))
    cells = 2048 * 30 * 3 * 64 * 2 * 2  # layers, KV heads, head width, K and V, bytes
    batch = 512 * 4 * (8 * 576 + 3 * 1536)  # tokens, bytes, widths of the model and inside its layers
    assert whole == path.stat().st_size + cells + batch + GPU_PROCESS_BYTES
    assert half < whole
    assert gpu_bytes(replace(spec, kv_cache_type="q8_0")) == whole - cells + cells // 2 // 32 * 34
    assert gpu_bytes(EngineSpec("llamacpp", "m", "/nowhere", gpu_layers=1)) == 0
