"""A GPU of 1 GiB that is not there: stands in a daemon's process where NVIDIA's library would.

Whoever has asked for it and has a model mapped counts with SIZE bytes; so it fills and empties as a real one does.
"""

import os
from pathlib import Path
from types import SimpleNamespace

TOTAL, SIZE = 1 << 30, 700 << 20
ASKED = Path(os.environ["PLAYED_DRIVER"])


def nvmlInit() -> None:
    (ASKED / str(os.getpid())).touch()


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetUUID(handle: int) -> str:
    return f"GPU-played-{handle}"


def nvmlDeviceGetMemoryInfo(_handle: int) -> SimpleNamespace:
    return SimpleNamespace(total=TOTAL, used=SIZE * sum(_holds(path.name) for path in ASKED.iterdir()))


def _holds(pid: str) -> bool:
    try:
        return ".gguf" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False
