"""In the sandbox of the service: the calls that placement makes, by itself or through libraries. Fails on a refusal."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform

MBIND, SET_MEMPOLICY = {"x86_64": (237, 238), "aarch64": (235, 237)}[platform.machine()]
PREFERRED, DEFAULT = 1, 0
LENGTH = 1 << 21

libc = ctypes.CDLL(None, use_errno=True)
block = mmap.mmap(-1, LENGTH)
where = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(block)))
length, nodes = ctypes.c_ulong(LENGTH), ctypes.byref(ctypes.c_ulong(1))


def must(result: int, call: str) -> None:
    if result != 0:
        raise SystemExit(f"{call}: {os.strerror(ctypes.get_errno())}")


block.madvise(mmap.MADV_HUGEPAGE)
must(libc.syscall(MBIND, where, length, PREFERRED, nodes, ctypes.c_ulong(64), 0), "mbind")
must(libc.syscall(SET_MEMPOLICY, DEFAULT, None, ctypes.c_ulong(0)), "set_mempolicy")
must(libc.mlock(where, length), "mlock")
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
