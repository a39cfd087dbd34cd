"""Stage 4 · vectors process · texts to vectors, with fastembed on onnxruntime, from local files only.

The file that computes in 8 bit is used where `models fetch` has made one (quantize.py), else the fetched one.

Every text is embedded alone: in a batch it is padded to its longest neighbour, which costs time and changes the last
digits, so that equal questions would not be equal. The window is fixed here, whatever the files say: loaders disagree
(128, 256, 512 tokens), and a vector means nothing without the window that made it.

A text fits when the model sees all of it: no token was cut off, and none is unknown. For this vocabulary an emoji, a
rare script's letter and a word of more than 100 letters are one and the same unknown token, so texts that differ in
nothing else would get one vector.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metamusesd.cache.base import DIMENSION
from metamusesd.cache.quantize import SOURCE, derived_path, loads
from metamusesd.errors import EmbedderFailed

if TYPE_CHECKING:
    from metamusesd.cache.base import Vector

WINDOW = 128
MOST_CHARACTERS = 2000  # longer texts do not fit, and are not tokenized to find out
REMEDY = "run `metamusesd models fetch minilm`, or name another directory in cache.embedder"
TOKENIZER = "tokenizer.json"
SMALL_FILES = (TOKENIZER, "config.json", "tokenizer_config.json", "special_tokens_map.json")


class FastEmbedder:
    """Implements Embedder. Making one blocks for half a second and raises EmbedderFailed; threads may share it."""

    def __init__(self, directory: Path, threads: int = 1, window: int = WINDOW) -> None:
        self.window = window
        self.weights = weights_of(directory)
        self.identity = identity_of(directory, window, self.weights)
        self._where = directory
        self._model = _load(directory, self.weights, threads)
        self._tokenizer = self._model.model.tokenizer
        self._tokenizer.enable_truncation(max_length=window)
        self._unknown: int | None = self._tokenizer.token_to_id("[UNK]")
        if len(vector := self.embed(["probe"])[0]) != DIMENSION:
            raise EmbedderFailed(f"{directory} makes vectors of {len(vector)} numbers, not {DIMENSION}; {REMEDY}")

    def fits(self, text: str) -> bool:
        """As promised by Embedder; at most 1 ms, and never raises."""
        if len(text) > MOST_CHARACTERS:
            return False
        try:
            tokens = self._tokenizer.encode(text)
        except (UnicodeError, TypeError):  # half a surrogate pair: no text at all
            return False
        return not tokens.overflowing and self._unknown not in tokens.ids

    def cuts(self, text: str) -> bool:
        """As promised by Embedder; some ms for a long text, and never raises."""
        try:
            return bool(self._tokenizer.encode(text).overflowing)
        except (UnicodeError, TypeError):
            return False

    def embed(self, texts: Sequence[str]) -> Sequence[Vector]:
        """As promised by Embedder; 5 ms for a short question. Equal texts get equal vectors."""
        return [self._embed(text) for text in texts]

    def _embed(self, text: str) -> Vector:
        import numpy as np

        try:
            vector = np.asarray(next(iter(self._model.embed([text]))), np.float32)
        except Exception as error:  # onnxruntime's errors have no common class
            raise EmbedderFailed(f"the embedder in {self._where} failed: {error}") from error
        length = float(np.linalg.norm(vector))
        if not length or not np.isfinite(length):
            raise EmbedderFailed(f"the embedder in {self._where} made a vector without a direction; {REMEDY}")
        return vector / np.float32(length)


def weights_of(directory: Path) -> str:
    """The name of the file to load; the derived one is tried, 0.1 s. Raises EmbedderFailed when there is none."""
    try:
        derived = derived_path(directory)
    except EmbedderFailed as error:
        raise EmbedderFailed(f"{error.message}; {REMEDY}") from error
    return derived.name if derived.is_file() and loads(derived) else SOURCE


def identity_of(directory: Path, window: int = WINDOW, weights: str = "") -> str:
    """The name of the vector space. Reads the weights: 30 ms. Raises EmbedderFailed when files are missing."""
    digest = hashlib.sha256(f"{window}\0".encode())
    for name in (weights or weights_of(directory), TOKENIZER):
        digest.update(hashlib.sha256(_read(directory / name)).digest())
    return digest.hexdigest()[:16]


def _load(directory: Path, weights: str, threads: int) -> Any:
    _check(directory)
    # Before the import: these libraries read the environment when they load. They must neither ask the network nor
    # start a thread a core to split one sentence.
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
    try:
        import fastembed
        from fastembed.common.model_description import ModelSource, PoolingType
    except ImportError as error:
        raise EmbedderFailed(f"the embedder's library is missing: {error}; pip install 'metamusesd[cache]'") from error
    name = f"metamusesd/{directory.name}/{weights}"
    try:
        if name not in {each["model"] for each in fastembed.TextEmbedding.list_supported_models()}:
            fastembed.TextEmbedding.add_custom_model(
                model=name, pooling=PoolingType.MEAN, normalization=True, sources=ModelSource(hf=name), dim=DIMENSION,
                model_file=weights,
            )  # fmt: skip
        return fastembed.TextEmbedding(
            name, cache_dir=str(directory), specific_model_path=str(directory), threads=threads,
            providers=["CPUExecutionProvider"],
        )  # fmt: skip
    except Exception as error:  # onnxruntime, tokenizers and fastembed each raise their own
        raise EmbedderFailed(f"the embedder in {directory} cannot be loaded: {error}; {REMEDY}") from error


def _check(directory: Path) -> None:
    """The small files are there and are JSON."""
    for name in SMALL_FILES:
        try:
            json.loads(_read(directory / name))
        except ValueError as error:
            raise EmbedderFailed(f"{directory / name} is broken: {error}; {REMEDY}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EmbedderFailed(f"{path} cannot be read: {error.strerror}; {REMEDY}") from error
