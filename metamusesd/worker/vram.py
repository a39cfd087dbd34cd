"""Stage 8 · worker · the memory of its GPUs, asked of the driver (NVML): room before a load, figures for the board.

A worker that was just killed may hold its memory for seconds longer: the driver frees it when the process is gone for
good. So a load waits until there is room. Without the library (`pip install 'metamusesd[gpu]'`), or without a driver,
nothing is known and nothing is asked: the load itself then finds out.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from metamusesd.errors import GpuFull, ModelLoadFailed
from metamusesd.log import Logger

MIB = 1 << 20
POLL_S = 0.25
STEADY_S = 5.0  # nobody has freed anything for so long: somebody else's memory it is


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one GPU, or of some together, in bytes."""

    total: int
    used: int

    @property
    def free(self) -> int:
        """Now, whoever uses the rest."""
        return self.total - self.used


class Gpus:
    """Those of one worker. `names`: indices (PCI bus order) or UUIDs, as in tiers.*.gpus."""

    def __init__(self, names: Sequence[str], log: Logger) -> None:
        self.names = tuple(names)
        self._nvml, self._handles = _open(self.names, log)

    def __bool__(self) -> bool:
        return bool(self._handles)

    def memory(self) -> Memory:
        """Of all together; zeros when nothing is known."""
        try:
            infos = [self._nvml.nvmlDeviceGetMemoryInfo(handle) for handle in self._handles]
        except Exception:  # NVMLError: the driver is being replaced, the GPU fell off the bus
            return Memory(0, 0)
        return Memory(sum(int(info.total) for info in infos), sum(int(info.used) for info in infos))

    def uuids(self) -> list[str]:
        """As the driver names them; empty when it does not tell."""
        try:
            found = [self._nvml.nvmlDeviceGetUUID(handle) for handle in self._handles]
        except Exception:  # NVMLError
            return []
        return [each.decode() if isinstance(each, bytes) else str(each) for each in found]

    @contextlib.contextmanager
    def turn(
        self, directory: Path, patience_s: float,
        now_s: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
    ) -> Iterator[None]:  # fmt: skip
        """One load of this daemon at a time on each of them: two would count the same bytes as free. The kernel lets go
        for who dies. Raises GpuFull when others load for longer than `patience_s`."""
        end_s = now_s() + patience_s
        with contextlib.ExitStack() as locks:
            for name in sorted(self.uuids()):
                file = locks.enter_context((directory / f"{name}.lock").open("wb"))
                while not _locked(file):
                    if now_s() > end_s:
                        raise GpuFull(
                            f"GPU {' '.join(self.names)}: another worker has been loading for {patience_s:g} s"
                        )
                    sleep(POLL_S)
            yield

    def wait_for_room(
        self, needed: int, patience_s: float, log: Logger,
        now_s: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        """Return when so many bytes are free. Raises ModelLoadFailed if the GPUs are too small, and GpuFull when nobody
        frees them: when nothing has changed for STEADY_S, or `patience_s` is over."""
        where, best = f"GPU {' '.join(self.names)}", -1
        began_s = changed_s = now_s()
        while self:
            memory = self.memory()
            if not memory.total or memory.free >= needed:
                return
            if needed > memory.total:
                raise ModelLoadFailed(f"{where}: {_mib(needed)} are needed, and it has {_mib(memory.total)} in all")
            if best < 0:
                log.info("waiting for the GPU's memory", gpus=where, needed=_mib(needed), free=_mib(memory.free))
            if memory.free > best:
                best, changed_s = memory.free, now_s()
            if now_s() - changed_s > STEADY_S or now_s() - began_s > patience_s:
                raise GpuFull(
                    f"{where}: {_mib(needed)} are needed, {_mib(memory.free)} are free: end what else uses it"
                )
            sleep(POLL_S)


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _mib(count: int) -> str:
    return f"{count // MIB} MiB"


def _open(names: Sequence[str], log: Logger) -> tuple[Any, list[Any]]:
    """(the library, a handle a GPU); no handles when something is missing."""
    if not names:
        return None, []
    try:
        import pynvml
    except ImportError:
        log.warning("the GPUs' memory is not watched: install metamusesd[gpu]", gpus=" ".join(names))
        return None, []
    try:
        pynvml.nvmlInit()
        return pynvml, [_handle(pynvml, name) for name in names]
    except Exception as error:  # NVMLError: no driver, no such GPU
        log.warning("the GPUs' memory cannot be read", gpus=" ".join(names), problem=str(error))
        return None, []


def _handle(nvml: Any, name: str) -> Any:
    if name.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)
