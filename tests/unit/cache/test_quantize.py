"""The embedder that computes in 8 bit: made once, another space than its source's, and near it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metamusesd.cache import embedder, quantize
from metamusesd.cache.embedder import FastEmbedder, identity_of
from metamusesd.config import load
from metamusesd.errors import EmbedderFailed

SOURCE = load(environ={}).embedder_dir
needs_model = pytest.mark.skipif(not (SOURCE / "model.onnx").is_file(), reason="no embedder here: make models")
TEXTS = ("How do I boil an egg?", "What is the best way to cook an egg?", "Who discovered penicillin?")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The fetched files alone."""
    for name in (quantize.SOURCE, *embedder.SMALL_FILES):
        shutil.copy(SOURCE / name, tmp_path / name)
    return tmp_path


@needs_model
@pytest.mark.timeout(120)
def test_it_is_made_once_and_is_near_its_source(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same question has nearly the same vector, another identity; a second call finds it there."""
    monkeypatch.setattr(quantize, "LEAST_GAIN", 0.0)  # whatever this machine is good at
    plain = FastEmbedder(directory)
    before = np.array(plain.embed(TEXTS))
    assert "computes in 8 bit" in quantize.derive(directory)
    made = quantize.derived_path(directory)
    stamp = made.stat().st_mtime_ns
    derived = FastEmbedder(directory)
    after = np.array(derived.embed(TEXTS))
    assert derived.weights == made.name and derived.identity != plain.identity == identity_of_source(directory)
    assert (before * after).sum(1).min() > 0.97
    assert abs(before @ before.T - after @ after.T).max() < 0.03
    assert "computes in 8 bit" in quantize.derive(directory) and made.stat().st_mtime_ns == stamp
    assert sorted(path.name for path in directory.glob(".derive*")) == []


def identity_of_source(directory: Path) -> str:
    """As if nothing had been derived."""
    made = quantize.derived_path(directory)
    aside = made.rename(made.with_suffix(".aside"))
    try:
        return identity_of(directory)
    finally:
        aside.rename(made)


@needs_model
def test_it_is_not_made_where_it_does_not_pay(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another vector space for nothing is none."""
    monkeypatch.setattr(quantize, "_quantized", lambda source, folder: shutil.copy(source, folder / "same.onnx"))
    monkeypatch.setattr(quantize, "_run_ms", lambda path: 1.0)
    assert "stays as it is" in quantize.derive(directory)
    assert not quantize.derived_path(directory).exists()


@needs_model
def test_one_of_another_source_is_not_used(directory: Path) -> None:
    """A replaced model.onnx does not go with what was derived from the old one."""
    (directory / "model.dynamic-000000000000.onnx").write_bytes(b"of another source")
    assert FastEmbedder(directory).weights == quantize.SOURCE


def test_a_broken_source_is_named(tmp_path: Path) -> None:
    """Missing, or no model: the reason, and nothing left behind."""
    with pytest.raises(EmbedderFailed, match=r"model\.onnx cannot be read"):
        quantize.derive(tmp_path)
    (tmp_path / quantize.SOURCE).write_bytes(b"no model")
    with pytest.raises(EmbedderFailed, match="cannot be quantized"):
        quantize.derive(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [quantize.SOURCE]


@needs_model
@pytest.mark.timeout(120)
def test_a_damaged_one_is_not_used_and_is_made_anew(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut left half a file: the source serves, and the next fetch mends it; leftovers of a killed one go."""
    monkeypatch.setattr(quantize, "LEAST_GAIN", 0.0)
    made = quantize.derived_path(directory)
    made.write_bytes(b"")
    (directory / ".derive-killed").mkdir()
    assert FastEmbedder(directory).weights == quantize.SOURCE
    assert "computes in 8 bit" in quantize.derive(directory)
    assert FastEmbedder(directory).weights == made.name and made.stat().st_mode & 0o777 == 0o644
    assert not (directory / ".derive-killed").exists()


@needs_model
def test_nothing_phones_home(tmp_path: Path) -> None:
    """onnxruntime writes an identifier of the machine and a store of reports into a home, and does not into ours."""
    program = (
        "import pathlib, sys; from metamusesd.cache.embedder import FastEmbedder; "
        "FastEmbedder(pathlib.Path(sys.argv[1])).embed(['What?'])"
    )
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", program, str(SOURCE)], env=environ, check=True, timeout=50)
    assert list(tmp_path.rglob("*")) == []
