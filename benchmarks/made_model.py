"""Made models · bench process · a model of a known shape with drawn weights, for measuring speed where none can be had.

What a model says follows from its weights, how quickly it says it does not: that follows from its shape and format. So
this file has the shape of a known model, weights that are noise, and the tokenizer and chat template of another file,
whose vocabulary is filled up with words that no prompt is made of. Needs numpy, and nothing from anywhere else.

    tile  │ block │ block │ … a prime number of blocks of 32 weights │      a matrix is the tile over and over, from a
          place of its own on: since no row's length divides a prime, no two of its rows are equal
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gguf_writer import BLOCK, Tensor, of_array, write
from metamusesd.errors import MetamusesdError
from metamusesd.gguf import read_header

TILE = 262_147  # blocks; a prime number
FILE_TYPES = {"f16": 1, "q4_0": 2, "q8_0": 7}
NORMAL = 1  # the type of an ordinary token
SCORE = -1e6  # of an added word, where tokens have scores: never the best
BLANKS = {"gpt2": "\u0120"}  # how a vocabulary spells the blank before a word; in all others
USUAL_BLANK = "\u2581"
VOCABULARY = "tokenizer.ggml.tokens"


@dataclass(frozen=True, slots=True)
class Shape:
    """What speed depends on. `vocabulary` 0: as many tokens as the tokenizer has."""

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    context: int
    vocabulary: int
    tied: bool  # the embeddings are the output matrix, too
    rope_base: float = 500_000.0


SHAPES = {
    "llama-8b": Shape(4096, 14336, 32, 32, 8, 128, 8192, 128_256, tied=False),
    "llama-1b": Shape(2048, 8192, 16, 32, 8, 64, 131_072, 128_256, tied=True),
    "tiny": Shape(128, 256, 2, 4, 2, 32, 8192, 0, tied=True),
}


def main(arguments: list[str]) -> int:
    """`python -m benchmarks make-model`: a GGUF file in the shape of a known model, its weights drawn at random."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks make-model", description=main.__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), required=True)
    parser.add_argument("--like", type=Path, required=True, help="GGUF file whose tokenizer and template it gets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--format", choices=sorted(FILE_TYPES), default="q4_0", help="of the matrices (default q4_0)")
    parser.add_argument("--vocabulary", type=int, help="tokens (default: as many as the known model has)")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        make(options.out, options.shape, options.like, options.format, options.vocabulary)
    except (MetamusesdError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    size, took_s = options.out.stat().st_size, time.monotonic() - started
    print(f"{options.out}: {size / 2**20:.0f} MiB in {took_s:.1f} s")
    return 0


def make(out: Path, shape_name: str, like: Path, form: str = "q4_0", vocabulary: int | None = None) -> None:
    """Write the model. Raises ValueError when `vocabulary` is smaller than that of `like`."""
    shape = SHAPES[shape_name]
    words = shape.vocabulary if vocabulary is None else vocabulary
    tokenizer = filled_tokenizer(tokenizer_of(like), words)
    entries = _entries(shape, len(tokenizer[VOCABULARY])) | {
        "general.name": f"Made {shape_name}: drawn weights in a known shape",
        "general.file_type": FILE_TYPES[form],
        "general.quantization_version": 2,
    }
    write(out, entries | tokenizer, list(_tensors(shape, len(tokenizer[VOCABULARY]), Tile(form))))


def tokenizer_of(like: Path) -> dict[str, Any]:
    """All that a GGUF file says of its tokenizer and chat template."""
    names = tuple(key for key in read_header(like).entries if key.startswith("tokenizer."))
    entries = read_header(like, whole=names).entries
    if not isinstance(entries.get(VOCABULARY), list):
        raise ValueError(f"{like}: it has no vocabulary")
    return {name: entries[name] for name in names if entries[name] != []}


def filled_tokenizer(tokenizer: dict[str, Any], size: int) -> dict[str, Any]:
    """The tokenizer with words added up to `size` tokens (0: as many as it has)."""
    tokens = tokenizer[VOCABULARY]
    missing = size - len(tokens) if size else 0
    if missing < 0:
        raise ValueError(f"a vocabulary of {size} tokens: that of --like has {len(tokens)}")
    blank = BLANKS.get(tokenizer.get("tokenizer.ggml.model", ""), USUAL_BLANK)
    added: dict[str, list[Any]] = {
        VOCABULARY: _new_words(missing, blank, set(tokens)),
        "tokenizer.ggml.token_type": [NORMAL] * missing,
        "tokenizer.ggml.scores": [SCORE] * missing,
    }
    return tokenizer | {key: tokenizer[key] + more for key, more in added.items() if key in tokenizer}


def _new_words(wanted: int, blank: str, known: set[str]) -> list[str]:
    """Pronounceable words, shortest first, that are not in the vocabulary yet."""
    syllables = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
    words = (blank + "".join(parts) for length in count(2) for parts in product(syllables, repeat=length))
    fresh = (word for word in words if word not in known)
    return [next(fresh) for _ in range(wanted)]


def _entries(shape: Shape, vocabulary: int) -> dict[str, Any]:
    described = {
        "vocab_size": vocabulary,
        "context_length": shape.context,
        "embedding_length": shape.width,
        "feed_forward_length": shape.inner,
        "block_count": shape.layers,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head,
        "attention.value_length": shape.head,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": shape.head,
        "rope.freq_base": shape.rope_base,
    }
    return {"general.architecture": "llama"} | {f"llama.{key}": value for key, value in described.items()}


def _tensors(shape: Shape, vocabulary: int, tile: Tile) -> Iterator[Tensor]:
    width, inner, ones = shape.width, shape.inner, np.ones(shape.width)
    asked, kept = shape.heads * shape.head, shape.kv_heads * shape.head
    yield tile.matrix("token_embd.weight", width, vocabulary)
    for layer in range(shape.layers):
        at = f"blk.{layer}"
        yield of_array(f"{at}.attn_norm.weight", ones)
        yield tile.matrix(f"{at}.attn_q.weight", width, asked)
        yield tile.matrix(f"{at}.attn_k.weight", width, kept)
        yield tile.matrix(f"{at}.attn_v.weight", width, kept)
        yield tile.matrix(f"{at}.attn_output.weight", asked, width)
        yield of_array(f"{at}.ffn_norm.weight", ones)
        yield tile.matrix(f"{at}.ffn_gate.weight", width, inner)
        yield tile.matrix(f"{at}.ffn_up.weight", width, inner)
        yield tile.matrix(f"{at}.ffn_down.weight", inner, width)
    yield of_array("output_norm.weight", ones)
    if not shape.tied:
        yield tile.matrix("output.weight", width, vocabulary)


class Tile:
    """Blocks of drawn weights in one format, with a mean of 0, and matrices that are cut from them."""

    def __init__(self, form: str, seed: int = 1) -> None:
        self.format = form
        self._draw = np.random.default_rng(seed)
        self._blocks, self._spread = _draw_blocks(form, self._draw)

    def matrix(self, name: str, columns: int, rows: int) -> Tensor:
        """Weights so small that a product is about as large as what goes into it."""
        start = int(self._draw.integers(TILE))
        shape = (columns, rows)
        return Tensor(name, shape, self.format, lambda: self._cut(start, prod(shape) // BLOCK, columns**-0.5))

    def _cut(self, start: int, wanted: int, spread: float) -> Iterator[npt.NDArray[Any]]:
        scaled = self._blocks.copy()
        field = "weights" if self.format == "f16" else "scale"
        scaled[field] = (scaled[field].astype(np.float32) * (spread / self._spread)).astype(np.float16)
        while wanted:
            piece = scaled[start : start + wanted]
            wanted -= len(piece)
            start = 0
            yield piece.view(np.uint8)


def _draw_blocks(form: str, draw: np.random.Generator) -> tuple[npt.NDArray[Any], float]:
    """The blocks, and the standard deviation of their weights."""
    if form == "f16":
        blocks = np.zeros(TILE, [("weights", "<f2", BLOCK)])
        blocks["weights"] = draw.standard_normal((TILE, BLOCK), np.float32)
        return blocks, 1.0
    packed = BLOCK // 2 if form == "q4_0" else BLOCK  # q4_0: two weights a byte, from -8 to 7
    blocks = np.zeros(TILE, [("scale", "<f2"), ("packed", "u1", packed)])
    blocks["packed"] = draw.integers(0, 256, (TILE, packed), np.uint8)
    blocks["scale"] = draw.choice([-1.0, 1.0], TILE)  # the mean of -8 … 7 is no 0, that of both signs is
    steps = np.arange(-8, 8) if form == "q4_0" else np.arange(-128, 128)
    return blocks, float(np.sqrt(np.mean(steps.astype(np.float64) ** 2)))
