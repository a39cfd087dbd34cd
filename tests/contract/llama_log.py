"""What llama.cpp logs while a test loads models."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from metamusesd.engines.llamacpp import native  # noqa: E402


@contextmanager
def heard() -> Iterator[list[str]]:
    """The lines of models that are loaded inside; in the end llama.cpp has its usual listener again, for it would call
    this one after its death."""
    told: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(_level: int, text: bytes, _user: Any) -> None:
        told.append(text.decode("utf-8", "replace"))

    usual, native._listen = native._listen, listen
    try:
        yield told
    finally:
        native._listen = usual
        llama_cpp.llama_log_set(usual, ctypes.c_void_p(0))
