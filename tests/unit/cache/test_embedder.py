"""The embedder with the real model: what fits, what equal means, what a broken directory costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metamusesd.cache.base import DIMENSION
from metamusesd.cache.embedder import MOST_CHARACTERS, SMALL_FILES, WINDOW, FastEmbedder, identity_of
from metamusesd.cache.quantize import SOURCE
from metamusesd.errors import EmbedderFailed

FILES = Path(os.environ.get("MODELS_DIR", "models")) / "all-MiniLM-L6-v2"
pytestmark = pytest.mark.skipif(not (FILES / SOURCE).exists(), reason="`make models` has not fetched the embedder")


@pytest.fixture(scope="module")
def embedder() -> FastEmbedder:
    """One for all tests: it takes half a second."""
    return FastEmbedder(FILES)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files, to be spoilt; the weights are a link."""
    place = tmp_path / "model"
    place.mkdir()
    for name in SMALL_FILES:
        shutil.copy(FILES / name, place)
    (place / SOURCE).symlink_to((FILES / SOURCE).resolve())
    return place


def test_a_vector_is_of_length_one(embedder: FastEmbedder):
    """384 numbers of 32 bits, one vector a text, in order."""
    vectors = embedder.embed(["How do I bake bread?", "", "日本語"])
    assert [(each.dtype, each.shape) for each in vectors] == [(np.float32, (DIMENSION,))] * 3
    assert [float(np.linalg.norm(each)) for each in vectors] == pytest.approx([1, 1, 1], abs=1e-6)
    assert list(embedder.embed([])) == []


def test_near_questions_are_near(embedder: FastEmbedder):
    """The model is the one that the thresholds were made for."""
    a, b, c = embedder.embed(["How do I bake bread?", "how can I bake a bread", "What is the capital of France?"])
    assert float(a @ b) > 0.9
    assert float(a @ c) < 0.3


def test_equal_texts_get_equal_vectors(embedder: FastEmbedder):
    """Whatever else is in the call, and however long that is."""
    [alone] = embedder.embed(["why"])
    among = embedder.embed(["a much longer question than the other one, " * 5, "why"])[1]
    assert np.array_equal(alone, among)


def test_a_text_fits_up_to_the_window(embedder: FastEmbedder):
    """Counted in real tokens, the two special ones included."""
    assert embedder.window == WINDOW == 128
    assert embedder.fits("word " * 126)
    assert not embedder.fits("word " * 127)
    assert embedder.fits("")


def test_a_long_text_does_not_fit_without_being_tokenized(embedder: FastEmbedder, monkeypatch: pytest.MonkeyPatch):
    """A megabyte of spaces is no token at all, and takes seconds to say so."""
    monkeypatch.setattr(embedder, "_tokenizer", None)
    assert not embedder.fits(" " * (MOST_CHARACTERS + 1))


def test_beyond_the_window_nothing_is_seen(embedder: FastEmbedder):
    """Hence `fits`: two texts that differ behind it would be one."""
    a, b = embedder.embed(["word " * 130 + "cat", "word " * 130 + "dog"])
    assert np.array_equal(a, b)


@pytest.mark.parametrize("text", ["What does 😀 mean?", "a" * 101, "\ud800", "\U0001f1e9\U0001f1ea flag"])
def test_a_text_that_is_not_wholly_seen_does_not_fit(embedder: FastEmbedder, text: str):
    """An unknown token stands for any other unknown one."""
    assert not embedder.fits(text)


def test_no_text_is_no_crash(embedder: FastEmbedder):
    """Half a surrogate pair is our error."""
    with pytest.raises(EmbedderFailed):
        embedder.embed(["\ud800"])


def test_identity_follows_weights_tokenizer_and_window(embedder: FastEmbedder, copy: Path):
    """The same files have the same one anywhere; each of the three changes it."""
    identities = {identity_of(copy), identity_of(copy, 64)}
    assert FastEmbedder(copy).identity in identities and embedder.identity == identity_of(FILES)
    (copy / "tokenizer.json").write_bytes((FILES / "tokenizer.json").read_bytes() + b"\n")
    identities.add(identity_of(copy))
    (copy / SOURCE).unlink()
    (copy / SOURCE).write_bytes(b"other")
    identities.add(identity_of(copy))
    assert len(identities) == 4
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in identities)


@pytest.mark.parametrize("name", [SOURCE, *SMALL_FILES])
def test_a_missing_file_is_named_with_the_remedy(copy: Path, name: str):
    """Before anything is loaded."""
    (copy / name).unlink()
    with pytest.raises(EmbedderFailed, match=rf"{name}.*metamusesd models fetch minilm"):
        FastEmbedder(copy)


@pytest.mark.parametrize("name", [SOURCE, *SMALL_FILES])
def test_a_broken_file_is_our_error_with_the_remedy(copy: Path, name: str):
    """Whichever library stumbles over it."""
    (copy / name).unlink()
    (copy / name).write_bytes(b"\xa5 no")
    with pytest.raises(EmbedderFailed, match=rf"{copy}.*metamusesd models fetch minilm"):
        FastEmbedder(copy)


QUIET = """
import sys
from pathlib import Path

def watch(event, given):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise SystemExit(f"{event} {given}")

sys.addaudithook(watch)
from metamusesd.cache.embedder import FastEmbedder
assert not {"numpy", "fastembed", "onnxruntime"} & set(sys.modules)
FastEmbedder(Path(sys.argv[1])).embed(["why"])
"""


def test_it_is_quiet_and_needs_no_network():
    """Nothing on standard error, nothing heavy at import, no sockets."""
    done = subprocess.run([sys.executable, "-c", QUIET, str(FILES)], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
