"""What `bench --write` keeps, and when it counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metamusesd.config import Config, Daemon, Model
from metamusesd.models import digest_of
from metamusesd.supervisor import measured


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "a.gguf").write_bytes(b"weights")
    daemon = Daemon(state_dir=str(tmp_path / "state"), models_dir=str(tmp_path))
    return Config(daemon=daemon, models={"a": Model(file="a.gguf"), "gone": Model(file="b.gguf")})


def row(**more: object) -> dict[str, object]:
    return {"model": "a", "cores": 2, "decode": {"1": 80.0, "8": 120.0}} | more


def test_what_was_kept_is_the_rate_of_one_core(config: Config) -> None:
    """One stream's tokens/s, divided by the cores that it was measured on."""
    assert measured.keep(config, {digest_of(config.models_dir / "a.gguf"): row()})
    assert measured.core_rates(config) == {"a": 40.0}


def test_a_second_run_leaves_other_models_alone(config: Config) -> None:
    """Only the models that were measured again are replaced."""
    measured.keep(config, {"sha256:x": row()})
    measured.keep(config, {"sha256:y": row(cores=1)})
    assert set(measured.measured(config)) == {"sha256:x", "sha256:y"}


def test_another_file_under_the_same_name_is_not_the_one_that_was_measured(config: Config) -> None:
    """The digest decides; a file that nobody has hashed yet has none, and is not hashed for this."""
    measured.keep(config, {digest_of(config.models_dir / "a.gguf"): row()})
    (config.models_dir / "a.gguf").write_bytes(b"other weights")
    assert measured.core_rates(config) == {}


def test_another_machine_begins_anew(config: Config) -> None:
    """A state directory that was moved here brings no rates along."""
    digest = digest_of(config.models_dir / "a.gguf")
    measured.keep(config, {digest: row()})
    path = measured.rates_path(config)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "a mainframe"}))
    assert measured.core_rates(config) == {} and measured.measured(config) == {}


@pytest.mark.parametrize(
    "spoilt",
    ["", "[]", "{", '{"machine": 1}', "nonsense", '{"machine": "HERE", "models": []}',
     '{"machine": "HERE", "models": {"DIGEST": 1}}',
     '{"machine": "HERE", "models": {"DIGEST": {"decode": {"1": "x"}}}}',
     '{"machine": "HERE", "models": {"DIGEST": {"decode": {"1": 3}, "cores": 0}}}'],
)  # fmt: skip
def test_a_spoilt_file_is_as_if_nothing_had_been_measured(config: Config, spoilt: str) -> None:
    """The daemon must start on whatever stands there."""
    digest = digest_of(config.models_dir / "a.gguf")
    config.state_dir.mkdir()
    text = spoilt.replace("HERE", measured.machine()).replace("DIGEST", digest)
    measured.rates_path(config).write_text(text)
    assert measured.core_rates(config) == {}


def test_a_gpu_says_nothing_of_cores(config: Config) -> None:
    """Rates of a GPU do not decide how many cores a CPU worker gets."""
    measured.keep(config, {digest_of(config.models_dir / "a.gguf"): row(gpus=["0"])})
    assert measured.core_rates(config) == {}


def test_the_machine_is_named_by_its_processor(tmp_path: Path) -> None:
    """Model name, family and stepping; a machine that says nothing of itself is still a name."""
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nmodel name\t: Test 9000\ncpu family : 25\nmodel : 17\nstepping : 1\n\nmodel : 3\n")
    assert measured.machine(path).startswith("Test 9000, family 25 model 17 stepping 1, ")
    assert measured.machine(tmp_path / "none").endswith("CPUs")
