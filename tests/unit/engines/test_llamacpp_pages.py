"""Locked memory and huge pages: what is needed is compared with what is allowed, and said with both figures."""

from __future__ import annotations

import mmap
import os
import resource
from pathlib import Path

import pytest

from metamusesd.engines.llamacpp import pages
from metamusesd.errors import ModelLoadFailed

PLAIN, MAY_LOCK = "CapEff:\t0000000000000000\nVmLck:\t       0 kB\n", f"CapEff:\t{1 << pages.CAP_IPC_LOCK:016x}\n"


@pytest.fixture
def limits(monkeypatch):
    """The process' limit, and what it is set to."""
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(pages.resource, "setrlimit", lambda _which, limit: set_to.append(limit))

    def give(soft: int, hard: int) -> list[tuple[int, int]]:
        monkeypatch.setattr(pages.resource, "getrlimit", lambda _which: (soft, hard))
        return set_to

    return give


def model(tmp_path, size: int) -> str:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"")
    os.truncate(path, size)
    return str(path)


def status(tmp_path, text: str) -> str:
    path = tmp_path / "status"
    path.write_text(text)
    return str(path)


def test_a_limit_that_is_too_small_is_told_with_the_need(tmp_path, limits):
    """Before anything is loaded, with both figures and the remedy."""
    limits(8 << 20, 8 << 20)
    with pytest.raises(ModelLoadFailed) as caught:
        pages.check_lock(model(tmp_path, 94 << 20), status(tmp_path, PLAIN))
    assert "has 94 MiB to be locked, and this process may lock 8 MiB; set LimitMEMLOCK" in caught.value.message
    assert not caught.value.retryable


def test_the_soft_limit_is_raised_to_the_hard_one(tmp_path, limits):
    """What the operator allows is taken."""
    set_to = limits(8 << 20, 512 << 20)
    pages.check_lock(model(tmp_path, 94 << 20), status(tmp_path, PLAIN))
    assert set_to == [(512 << 20, 512 << 20)]


def test_whoever_may_lock_everything_is_asked_for_no_limit(tmp_path, limits):
    """CAP_IPC_LOCK goes before any limit; no limit at all is one that suffices."""
    limits(8 << 20, 8 << 20)
    pages.check_lock(model(tmp_path, 94 << 20), status(tmp_path, MAY_LOCK))
    limits(resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    pages.check_lock(model(tmp_path, 94 << 20), status(tmp_path, PLAIN))


def test_what_was_not_locked_is_no_success(tmp_path):
    """llama.cpp only warns: its words are in the error."""
    with pytest.raises(ModelLoadFailed) as caught:
        pages.check_locked("m.gguf", "failed to mlock", status(tmp_path, PLAIN))
    assert "m.gguf was not locked: failed to mlock; set mlock = false" in caught.value.message
    pages.check_locked("m.gguf", "", status(tmp_path, "VmLck:\t  94320 kB\n"))


@pytest.mark.parametrize(
    ("mode", "words"), [("always madvise [never]\n", "is `never`; write `madvise`"), (None, "has no transparent")]
)
def test_a_kernel_that_gives_no_huge_pages(tmp_path, monkeypatch, mode, words):
    """Asked for and not to be had: refused with the remedy, not passed over."""
    path = tmp_path / "enabled"
    if mode is not None:
        path.write_text(mode)
    monkeypatch.setattr(pages, "THP", path)
    with pytest.raises(ModelLoadFailed) as caught:
        pages.ask_for_huge()
    assert words in caught.value.message


def test_only_large_private_anonymous_memory_is_asked_for(tmp_path):
    """Neither files, nor shared memory (the board), nor stacks, nor small mappings."""
    maps = tmp_path / "maps"
    maps.write_text(
        "10000000-12000000 rw-p 00000000 00:00 0 \n"
        "20000000-22000000 rw-s 00000000 00:01 1031 /dev/zero (deleted)\n"
        "30000000-32000000 r--s 00000000 08:01 77 /models/m.gguf\n"
        "40000000-40100000 rw-p 00000000 00:00 0 \n"
        "50000000-52000000 rw-p 00000000 00:00 0                          [heap]\n"
        "60000000-62000000 ---p 00000000 00:00 0 \n"
        "70000000-72000000 rw-p 00000000 00:00 0                          [stack]\n"
    )
    assert list(pages._large(str(maps))) == [(0x10000000, 0x12000000), (0x50000000, 0x52000000)]


@pytest.mark.skipif(
    "[never]" in (pages.THP.read_text() if pages.THP.exists() else "[never]"), reason="no huge pages here"
)
def test_the_kernel_gives_huge_pages_for_touched_memory():
    """Real memory that was touched before it was asked for, as a KV cache is, lies on huge pages afterwards."""
    memory = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = b"\1" * len(memory)
    if not pages.ask_for_huge():
        pytest.skip("the kernel had none to give, or is older than 6.1")
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    found = [line for line in lines if line.startswith("AnonHugePages")]
    assert int(found[0].split()[1]) > 0
    assert memory[-1] == 1
