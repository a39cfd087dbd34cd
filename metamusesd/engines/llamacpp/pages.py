"""Stage 8 · worker · the pages that a model lies on: locked in memory, huge or small. Standard library and the kernel.

`mlock` is llama.cpp's, and that only warns when it fails: so what it needs is compared with what is allowed before the
load, and what was locked is looked at after it. Huge pages cannot be had at allocation (glibc reads its tunables when a
process starts, and a worker is forked): so the large anonymous mappings, KV cache and buffers, are advised and
collapsed when they are there. Weights are a file's pages, whose size is the file system's affair.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from metamusesd.errors import ModelLoadFailed

PR_SET_THP_DISABLE = 41
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25  # the second one since Linux 6.1
CAP_IPC_LOCK = 14
HUGE_BYTES = 2 << 20
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def check_lock(path: str, status: str = "/proc/self/status") -> None:
    """Before the load: raises ModelLoadFailed, with both figures, when this process may not lock the file's size.
    Takes the soft limit up to the hard one."""
    need, (soft, hard) = Path(path).stat().st_size, resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if _may_lock_all(status) or hard == resource.RLIM_INFINITY or hard >= need:
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
        return
    raise ModelLoadFailed(
        f"mlock: {path} has {_mib(need)} to be locked, and this process may lock {_mib(hard)}; set "
        "LimitMEMLOCK=infinity in the unit (or raise `ulimit -l`), or mlock = false"
    )


def check_locked(path: str, complaints: str, status: str = "/proc/self/status") -> None:
    """After the load: raises ModelLoadFailed when nothing was locked all the same."""
    if _field(status, "VmLck") == 0:
        raise ModelLoadFailed(f"mlock: {path} was not locked: {complaints or 'the kernel refused'}; set mlock = false")


def refuse_huge() -> None:
    """No huge pages for this process, whatever the system is set to. Before the load."""
    if _libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0:
        raise ModelLoadFailed(f'hugepages: off: prctl: {os.strerror(ctypes.get_errno())}; set hugepages = "system"')


def ask_for_huge(maps: str = "/proc/self/maps") -> int:
    """Huge pages for all large anonymous mappings, now; returns how many bytes got them. After the load. Raises
    ModelLoadFailed when this kernel gives none to anybody; memory that is too broken up just gets fewer."""
    try:
        mode = THP.read_text()
    except OSError:
        raise ModelLoadFailed(
            'hugepages: thp: this kernel has no transparent huge pages; set hugepages = "system"'
        ) from None
    if "[never]" in mode:
        raise ModelLoadFailed(f'hugepages: thp: {THP} is `never`; write `madvise` to it, or set hugepages = "system"')
    return sum(_collapse(start, end) for start, end in _large(maps))


def _collapse(start: int, end: int) -> int:
    """One huge page at a time: the kernel gives up a range at the first page that cannot be."""
    _libc.madvise(start, end - start, MADV_HUGEPAGE)
    first, last = -(-start // HUGE_BYTES) * HUGE_BYTES, end // HUGE_BYTES * HUGE_BYTES
    return sum(HUGE_BYTES for at in range(first, last, HUGE_BYTES) if _libc.madvise(at, HUGE_BYTES, MADV_COLLAPSE) == 0)


def _large(maps: str) -> Iterator[tuple[int, int]]:
    """Private writable mappings of no file, two huge pages long or longer."""
    for line in Path(maps).read_text().splitlines():
        where, access, _offset, _device, inode, *name = line.split(maxsplit=5)
        start, _, end = where.partition("-")
        large = int(end, 16) - int(start, 16) >= 2 * HUGE_BYTES
        if large and inode == "0" and access.startswith("rw") and access.endswith("p") and name in ([], ["[heap]"]):
            yield int(start, 16), int(end, 16)


def _may_lock_all(status: str) -> bool:
    lines = Path(status).read_text().splitlines()
    held = next((line.split()[1] for line in lines if line.startswith("CapEff:")), "0")
    return bool(int(held, 16) >> CAP_IPC_LOCK & 1)


def _field(status: str, name: str) -> int:
    """In KiB."""
    lines = Path(status).read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
