"""Requantizing on the real library: what a format costs in quality, by the shipped text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metamusesd.config import DEMO_MODEL
from metamusesd.gguf import read_header
from metamusesd.models import CATALOGUE

pytest.importorskip("llama_cpp")

from metamusesd.engines.llamacpp import derive
from metamusesd.engines.llamacpp.formats import bytes_at_most

MODELS = Path(os.environ.get("MODELS_DIR") or Path(__file__).parents[2] / "models")
NAMES = (DEMO_MODEL, CATALOGUE["gemma3-270m"][0].target)
CHARACTERS = 500  # of the text: about a hundred tokens


def model(name: str) -> Path:
    if not (MODELS / name).is_file():
        pytest.skip(f"{name} is not there: run `metamusesd models fetch`")
    return MODELS / name


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The beginning of the text, in place of all of it."""
    words = derive.TEXT.read_text("utf-8")[:CHARACTERS]
    monkeypatch.setattr(derive, "TEXT", tmp_path / "text")
    (tmp_path / "text").write_text(words)
    return words


def perplexity(path: Path) -> float:
    """On one core; this process gets its others back."""
    cores = os.sched_getaffinity(0)
    try:
        return derive.quality(str(path), {min(cores)})["perplexity"]
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize("name", NAMES)
def test_the_perplexity_is_that_of_a_model_that_reads(name: str, text: str) -> None:
    """Far below that of the same words in another order, also for a model whose prompts begin with a token of their
    own."""
    path = model(name)
    plain = perplexity(path)
    derive.TEXT.write_text(" ".join(reversed(text.split())))
    assert 2 < plain < 60 and perplexity(path) > 5 * plain


@pytest.mark.parametrize("name", NAMES)
def test_eight_bits_hold_what_four_had(name: str, text: str, tmp_path: Path) -> None:
    """Requantized to Q8_0 it is as good within the bound, says so, and takes no more room than foretold."""
    path = model(name)
    derive.make(str(path), str(tmp_path / "made.gguf"), "Q8_0")
    header = read_header(tmp_path / "made.gguf")
    assert header.quantization == "Q8_0" and header.parameters == read_header(path).parameters
    assert (tmp_path / "made.gguf").stat().st_size < bytes_at_most(read_header(path), "Q8_0")
    assert perplexity(tmp_path / "made.gguf") == pytest.approx(perplexity(path), rel=0.02)
