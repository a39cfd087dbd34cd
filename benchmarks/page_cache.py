"""Engine benchmark · bench process · take a file out of the kernel's page cache, and look whether it is out."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np


def drop(path: Path) -> float:
    """Ask the kernel to forget the file; the share of it that stays in memory. Pages that a process has mapped do."""
    with path.open("rb") as file:
        os.fsync(file.fileno())  # what is not written yet would stay as well
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident(path)


def bring(path: Path) -> None:
    """Read the file once."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def resident(path: Path) -> float:
    """The share of the file's pages that are in memory, by mincore. It says so to the file's owner only."""
    page = mmap.PAGESIZE
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        pages = np.zeros(-(-len(mapped) // page), np.uint8)
        view = np.frombuffer(mapped, np.uint8)
        address, length = view.ctypes.data, len(mapped)
        status = _MINCORE(address, length, pages.ctypes.data)
        del view  # else the mapping cannot be closed
    if status:
        raise OSError(ctypes.get_errno(), f"mincore: {os.strerror(ctypes.get_errno())}", str(path))
    return float((pages & 1).mean())


_MINCORE = ctypes.CDLL(None, use_errno=True).mincore
_MINCORE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
