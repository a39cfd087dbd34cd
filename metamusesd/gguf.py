"""Stage 0 · any process · what a GGUF file says of itself, read without loading the model. Stdlib only.

    "GGUF" │ version u32 │ tensors u64 │ entries u64 │ entry … │ tensor descriptions … │ data
    entry: key string │ type u32 │ value        string: length u64, bytes        array: type u32, count u64, values

A model file is input like any other: lengths are bounded, and a broken one is a typed error.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metamusesd.errors import ModelLoadFailed, ModelNotFound

MAX_ENTRIES = 65_536
MAX_ARRAY = 16_000_000
KEEP_ARRAY = 512  # longer arrays are skipped: vocabularies; shorter ones may have a number for each layer
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M",
    18: "Q6_K", 25: "IQ4_NL", 30: "IQ4_XS", 32: "BF16",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Header:
    """The entries of a GGUF file (long arrays as their length, if not asked for) and the parameters of its tensors."""

    version: int
    tensors: int
    parameters: int
    entries: dict[str, Any]

    @property
    def architecture(self) -> str:
        return str(self.entries.get("general.architecture", ""))

    def of_architecture(self, key: str) -> Any:
        """`context_length` of a llama is `llama.context_length`."""
        return self.entries.get(f"{self.architecture}.{key}")

    @property
    def quantization(self) -> str:
        kind = self.entries.get("general.file_type")
        return _FILE_TYPES.get(kind, f"type {kind}") if isinstance(kind, int) else "unknown"

    @property
    def trained_context(self) -> int:
        """Tokens that the model was made for; 0: the file does not say."""
        found = self.of_architecture("context_length")
        return found if isinstance(found, int) else 0


def read_header(path: str | Path, whole: tuple[str, ...] = ()) -> Header:
    """Raises ModelNotFound, or ModelLoadFailed when it is no whole GGUF header. Some 50 ms for a large vocabulary.

    Arrays whose keys are in `whole` are kept, however long; a vocabulary then takes some 500 ms.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, str(path), whole).header()
    except OSError as error:
        raise ModelNotFound(f"{path}: {error.strerror}") from error
    except (ValueError, struct.error, IndexError) as error:
        raise ModelLoadFailed(f"{path}: is no whole GGUF file: {error}") from error


class _Reader:
    def __init__(self, data: mmap.mmap, name: str, whole: tuple[str, ...]) -> None:
        self._data, self._at, self._name = data, 0, name
        self._whole, self._keep = whole, KEEP_ARRAY

    def header(self) -> Header:
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version, tensors, count = self._number("I"), self._number("Q"), self._number("Q")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not known")
        if count > MAX_ENTRIES or tensors > MAX_ENTRIES:
            raise ValueError(f"{count} entries and {tensors} tensors are too many")
        entries = {}
        for _ in range(count):
            key = self._string()
            self._keep = MAX_ARRAY if key in self._whole else KEEP_ARRAY
            entries[key] = self._value(self._number("I"))
        return Header(version, tensors, sum(self._tensor_elements() for _ in range(tensors)), entries)

    def _number(self, form: str) -> Any:
        value = struct.unpack_from(f"<{form}", self._data, self._at)[0]
        self._at += struct.calcsize(f"<{form}")
        return value

    def _string(self) -> str:
        length = self._number("Q")
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise ValueError("it ends in the middle of a text")
        return self._data[start : self._at].decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise ValueError(f"values of type {kind} are not known")
        return self._number(_SCALARS[kind])

    def _array(self) -> Any:
        kind, count = self._number("I"), self._number("Q")
        if count > MAX_ARRAY:
            raise ValueError(f"an array of {count} values is too long")
        if count <= self._keep:
            return [self._value(kind) for _ in range(count)]
        if kind == _STRING:
            for _ in range(count):
                length = self._number("Q")
                self._at += length
        elif kind in _SCALARS:
            self._at += count * struct.calcsize(f"<{_SCALARS[kind]}")
        else:
            raise ValueError("a long array of arrays")
        return count

    def _tensor_elements(self) -> int:
        self._string()
        elements = 1
        for _ in range(self._number("I")):
            elements *= self._number("Q")
        self._number("I")
        self._number("Q")
        return elements
