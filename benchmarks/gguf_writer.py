"""Made models · bench process · write a GGUF file, version 3, of whatever size. numpy and the standard library alone.

    "GGUF" │ 3 u32 │ tensors u64 │ entries u64 │ entry … │ description … │ data
    description: name string │ dimensions u32 │ size u64 … │ format u32 │ offset u64 in the data
                                               a matrix's first size is the length of a row: (columns, rows)

The data, and each tensor in it, begins at a multiple of 32 bytes.

`metamusesd/gguf.py` reads what is written here, and draws an entry.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

ALIGNMENT = 32
FORMATS = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}
BLOCK = 32  # weights
BLOCK_BYTES = {"f32": 128, "f16": 64, "q4_0": 18, "q8_0": 34}
_UNSIGNED, _SIGNED, _FLOAT, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9

Piece = bytes | npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor; `pieces` gives its bytes when its turn comes, in one piece or in many."""

    name: str
    shape: tuple[int, ...]
    format: str
    pieces: Callable[[], Iterable[Piece]]

    @property
    def size(self) -> int:
        """In bytes."""
        weights = prod(self.shape)
        if self.format in ("f32", "f16"):
            return weights * BLOCK_BYTES[self.format] // BLOCK
        if self.shape[0] % BLOCK:
            raise ValueError(f"{self.name}: rows of {self.shape[0]} weights; {self.format} packs them by the {BLOCK}")
        return weights // BLOCK * BLOCK_BYTES[self.format]


def of_array(name: str, values: npt.NDArray[Any]) -> Tensor:
    """An array in single precision, rows last as numpy has them."""
    data = np.ascontiguousarray(values, "<f4")
    return Tensor(name, tuple(reversed(values.shape)), "f32", lambda: [data])


def write(path: Path, entries: Mapping[str, Any], tensors: Sequence[Tensor]) -> None:
    """Write the file beside `path`, and put it there when it is whole."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            _write_header(file, entries, tensors)
            for tensor in tensors:
                _write_data(file, tensor)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_header(file: BinaryIO, entries: Mapping[str, Any], tensors: Sequence[Tensor]) -> None:
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)))
    for key, value in entries.items():
        file.write(_string(key) + _value(value))
    offset = 0
    for tensor in tensors:
        file.write(_string(tensor.name) + struct.pack("<I", len(tensor.shape)))
        file.write(struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape))
        file.write(struct.pack("<IQ", FORMATS[tensor.format], offset))
        offset += tensor.size + -tensor.size % ALIGNMENT
    _pad(file)


def _write_data(file: BinaryIO, tensor: Tensor) -> None:
    start = file.tell()
    for piece in tensor.pieces():
        file.write(memoryview(piece).cast("B"))
    if file.tell() - start != tensor.size:
        raise ValueError(f"{tensor.name}: {file.tell() - start} bytes were given, {tensor.size} it has")
    _pad(file)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    """A value behind its type: whole numbers are u32, those in lists i32, as llama.cpp's own files have them."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UNSIGNED, value) if value >= 0 else struct.pack("<Ii", _SIGNED, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    return struct.pack("<I", _ARRAY) + _array(value)


def _array(values: Sequence[Any]) -> bytes:
    if all(isinstance(each, str) for each in values):
        return struct.pack("<IQ", _STRING, len(values)) + b"".join(map(_string, values))
    if all(isinstance(each, bool) for each in values):
        return struct.pack("<IQ", _BOOL, len(values)) + bytes(values)
    kind, form = (_SIGNED, "<i4") if all(isinstance(each, int) for each in values) else (_FLOAT, "<f4")
    return struct.pack("<IQ", kind, len(values)) + np.asarray(values, form).tobytes()
