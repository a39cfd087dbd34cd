"""Made models: a file that says what its shape and its tokenizer are, and weights that nothing is wrong with."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as door
from benchmarks import made_model
from benchmarks.gguf_writer import Tensor, of_array, write
from metamusesd.gguf import read_header

BLANK = "\u0120"
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["<s>", "a", f"{BLANK}a", f"{BLANK}baba"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1],
    "tokenizer.ggml.merges": [f"{BLANK} a"],
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.chat_template": "{{ messages }}",
}
TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"


@pytest.fixture(autouse=True)
def short_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_model, "TILE", 10_007)


@pytest.fixture
def like(tmp_path: Path) -> Path:
    path = tmp_path / "like.gguf"
    write(path, {"general.architecture": "other"} | TOKENIZER, [])
    return path


def read(path: Path) -> dict[str, object]:
    return read_header(path, whole=(TOKENS, TYPES)).entries


@pytest.mark.parametrize(("form", "kind"), [("q4_0", "Q4_0"), ("q8_0", "Q8_0"), ("f16", "F16")])
def test_shape_and_tokenizer(like: Path, tmp_path: Path, form: str, kind: str) -> None:
    """The command writes the shape under a new name, and the tokenizer and template of the other file as they are."""
    out = tmp_path / "made.gguf"
    told = ["make-model", "--shape", "tiny", "--like", str(like), "--out", str(out), "--format", form]
    assert door.main([*told, "--vocabulary", "300"]) == 0
    header, entries = read_header(out), read(out)
    assert (header.architecture, header.quantization, header.trained_context) == ("llama", kind, 8192)
    assert str(entries["general.name"]).startswith("Made tiny")
    kept = {key: value for key, value in TOKENIZER.items() if key not in (TOKENS, TYPES)}
    assert kept.items() <= entries.items()
    layer = 128 * (128 + 64 + 64 + 128) + 3 * 128 * 256 + 2 * 128
    assert header.parameters == 300 * 128 + 2 * layer + 128


def test_vocabulary_is_filled_up(like: Path, tmp_path: Path) -> None:
    """With ordinary words that were not there: plain letters behind the blank, each once."""
    made_model.make(tmp_path / "made.gguf", "tiny", like, vocabulary=5000)
    entries = read(tmp_path / "made.gguf")
    tokens, types = entries[TOKENS], entries[TYPES]
    assert isinstance(tokens, list)
    assert tokens[:4] == TOKENIZER[TOKENS] and types == [3] + [1] * 4999
    assert len(set(tokens)) == len(tokens) == 5000
    assert all(word[0] == BLANK and word[1:].isascii() and word[1:].isalpha() for word in tokens[4:])


def test_too_small_a_vocabulary(like: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused, with both figures, and no file is left."""
    out = tmp_path / "made.gguf"
    told = ["make-model", "--shape", "tiny", "--like", str(like), "--out", str(out), "--vocabulary", "3"]
    assert door.main(told) == 1
    assert "of 3 tokens: that of --like has 4" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [like]


def test_known_shapes() -> None:
    """Their tensors have the parameters that the known models have: 8.03 and 1.236 thousand millions."""
    for name, millions in (("llama-8b", 8030.3), ("llama-1b", 1235.8)):
        shape = made_model.SHAPES[name]
        tensors = made_model._tensors(shape, shape.vocabulary, made_model.Tile("q4_0"))
        found = sum(int(np.prod(tensor.shape)) for tensor in tensors)
        assert round(found / 1e6, 1) == millions


@pytest.mark.parametrize("form", ["q4_0", "q8_0", "f16"])
def test_weights(form: str) -> None:
    """As many as the matrix has, with a mean of 0 and a spread by its width; no two rows are equal."""
    tensor = made_model.Tile(form).matrix("w", 256, 3000)
    rows = _weights(tensor, form).reshape(3000, 256)
    assert abs(rows.mean()) < 0.001
    assert rows.std() == pytest.approx(1 / 16, rel=0.02)
    assert len(np.unique(rows, axis=0)) == 3000


def _weights(tensor: Tensor, form: str) -> np.ndarray:
    raw = b"".join(bytes(memoryview(piece).cast("B")) for piece in tensor.pieces())
    assert len(raw) == tensor.size
    if form == "f16":
        return np.frombuffer(raw, "<f2").astype(np.float32)
    if form == "q8_0":
        blocks = np.frombuffer(raw, [("scale", "<f2"), ("packed", "i1", 32)])
        return blocks["scale"][:, None].astype(np.float32) * blocks["packed"]
    blocks = np.frombuffer(raw, [("scale", "<f2"), ("packed", "u1", 16)])
    packed = np.concatenate([blocks["packed"] & 15, blocks["packed"] >> 4], 1).astype(np.float32) - 8
    return blocks["scale"][:, None].astype(np.float32) * packed


def test_whole_or_not_there(tmp_path: Path) -> None:
    """A tensor that gives other bytes than it has leaves no file behind that looks like a model."""
    short = Tensor("w", (4,), "f32", lambda: [bytes(12)])
    with pytest.raises(ValueError, match="12 bytes were given, 16 it has"):
        write(tmp_path / "short.gguf", {}, [short])
    assert not list(tmp_path.iterdir())


def test_data_lies_where_the_file_says(tmp_path: Path) -> None:
    """Each tensor begins at its offset, by the 32 bytes."""
    write(tmp_path / "two.gguf", {"a": -1, "b": [True, False], "c": [0.5]}, [
        of_array("first", np.array([1.0, 2.0, 3.0])), of_array("second", np.array([[4.0], [5.0]])),
    ])  # fmt: skip
    raw = (tmp_path / "two.gguf").read_bytes()
    assert read_header(tmp_path / "two.gguf").entries == {"a": -1, "b": [True, False], "c": [0.5]}
    at = raw.index(struct.pack("<f", 1.0))
    assert at % 32 == 0 and raw[at + 32 : at + 40] == struct.pack("<2f", 4.0, 5.0)
    assert len(raw) % 32 == 0
