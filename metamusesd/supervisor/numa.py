"""Supervisor · in a child, before its engine is imported · memory is to come from the node that its cores are on.

Preferred, not bound: when the node is full, memory comes from elsewhere, and the worker is slower instead of dead. The
policy holds for memory that this process is the first to touch: KV cache, buffers, repacked weights. The weights' file
is in the page cache, on the node of whoever read it first; workers of one model on several nodes share that one copy.
"""

from __future__ import annotations

import ctypes
import os

MPOL_PREFERRED = 1
CALLS = {"x86_64": 238, "aarch64": 237}  # of set_mempolicy, which the C library does not wrap
NODES_MOST = 1024

_libc = ctypes.CDLL(None, use_errno=True)


def prefer(node: int) -> str:
    """From now on; inherited by threads that start later. Why it could not be done, or nothing."""
    number = CALLS.get(os.uname().machine)
    if number is None:
        return f"set_mempolicy is not known for {os.uname().machine}"
    if not 0 <= node < NODES_MOST:
        return f"node {node} is not one of 0 to {NODES_MOST - 1}"
    mask = (ctypes.c_ulong * (NODES_MOST // 64))()
    mask[node // 64] = 1 << node % 64
    if _libc.syscall(number, MPOL_PREFERRED, mask, ctypes.c_ulong(NODES_MOST + 1)) == 0:
        return ""
    return f"set_mempolicy: {os.strerror(ctypes.get_errno())}"
