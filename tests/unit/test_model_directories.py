"""Models that are directories: their digest, their size, what `check` says of them, and which engine they get."""

from __future__ import annotations

from pathlib import Path

import pytest

from metamusesd.commands.checks import all_checks
from metamusesd.config import Config, load, missing_models
from metamusesd.control import WorkerSpec
from metamusesd.engines.choice import make_engine
from metamusesd.errors import ModelLoadFailed
from metamusesd.models import digest_of, known_digest, size_of
from metamusesd.supervisor.placement import model_sizes
from metamusesd.worker.boot import spec_of
from tests.contract.tiny_model import make_tiny_model


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "tiny")


def configured(place: Path, **model: object) -> Config:
    lines = "".join(f"{key} = {value!r}\n" for key, value in model.items())
    home, file = place.parent, place.parent / "metamusesd.toml"
    file.write_text(
        f"[daemon]\nmodels_dir = '{home}'\nstate_dir = '{home}/state'\nruntime_dir = '{home}/run'\n"
        f"[models.tiny]\nfile = '{place.name}'\n{lines}[tiers.fast]\nmodel = 'tiny'\n"
    )
    return load(file, {})


def test_the_digest_is_of_all_files(place: Path) -> None:
    """Remembered inside it; the same for a copy under another name, another when a byte or a name is different."""
    assert known_digest(place) == ""
    digest = digest_of(place)
    assert digest == known_digest(place) == digest_of(make_tiny_model(place.parent / "again"))
    assert digest.startswith("sha256:")
    (place / "config.json").write_text("{}")
    changed = digest_of(place)
    (place / "config.json").rename(place / "other.json")
    assert len({digest, changed, digest_of(place)}) == 3


def test_its_size_is_that_of_its_files(place: Path) -> None:
    """Placement weighs it like any other model."""
    size = sum(file.stat().st_size for file in place.iterdir())
    assert size_of(place) == size
    assert model_sizes(configured(place)) == {"tiny": size}


def test_check_says_what_it_is(place: Path) -> None:
    """Architecture, context and digest in one line; a directory without a config.json is missing."""
    config = configured(place, context=512)
    assert missing_models(config) == []
    (line,) = [finding.text for finding in all_checks(config) if finding.text.startswith("models.tiny:")]
    assert line.startswith(f"models.tiny: tiny, LlamaForCausalLM, safetensors, context 512, {digest_of(place)[:19]}")
    (place / "config.json").unlink()
    assert "does not exist" in missing_models(config)[0]


def test_auto_gives_it_mistralrs(place: Path) -> None:
    """The worker's specification carries engine, reason and digest; llamacpp by name is refused."""
    worker = WorkerSpec("fast-0", "fast", "tiny", slots=2, reserve_slots=1, cores=(0,))
    spec = spec_of(configured(place), worker)
    assert (spec.engine, spec.model_digest) == ("mistralrs", digest_of(place))
    assert "llama.cpp reads no safetensors" in spec.chosen
    with pytest.raises(ModelLoadFailed, match="engine llamacpp reads a GGUF file"):
        spec_of(configured(place, engine="llamacpp"), worker)


def test_it_has_no_kv_cache_in_8_bit(place: Path) -> None:
    """mistral.rs keeps its own: `check` and the load say so, with what has one."""
    config = configured(place, context=512, kv_cache_type="q8_0")
    (line,) = [finding.text for finding in all_checks(config) if finding.wrong and "kv_cache_type" in finding.text]
    assert line.startswith("models.tiny.kv_cache_type: engine mistralrs has no KV cache of q8_0 (llamacpp has)")
    worker = WorkerSpec("fast-0", "fast", "tiny", slots=2, reserve_slots=1, cores=(0,))
    with pytest.raises(ModelLoadFailed, match=r"mistralrs has no KV cache of q8_0.*leave kv_cache_type out"):
        make_engine(spec_of(config, worker))
