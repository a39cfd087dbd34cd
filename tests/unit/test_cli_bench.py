"""`metamusesd bench` on the echo engine: the whole way through the measuring process, without a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metamusesd.engines.base import EngineSpec
from metamusesd.engines.measure import measure
from tests.unit.test_cli import run

CONFIG = """
[models.echo]
engine = "echo"
[tiers.fast]
model = "echo"
slots = 4
"""


@pytest.fixture
def echo(tmp_path: Path) -> list[str]:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG + f'[daemon]\nstate_dir = "{tmp_path}/s"\n')
    return ["--config", str(path)]


def test_every_length_and_every_number_of_streams_is_measured(echo: list[str]) -> None:
    """Streams go up to the tier's slots; load and memory are there as well."""
    done = run("bench", "--json", "--prompts", "64,128", *echo)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["echo"]
    assert list(row["prefill"]) == ["64", "128"] and list(row["decode"]) == ["1", "2", "4"]
    assert all(rate > 0 for rate in row["decode"].values())
    assert row["load_s"] >= 0 and row["rss_bytes"] > row["private_bytes"] > 0


def test_a_model_without_a_file_is_not_kept(echo: list[str], tmp_path: Path) -> None:
    """Echo's rates would mean nothing to placement."""
    done = run("bench", "--write", "--prompts", "8", "--streams", "1", *echo)
    assert done.returncode == 0 and "nothing is kept" in done.stderr
    assert not (tmp_path / "s" / "rates.json").exists()


@pytest.mark.parametrize(
    ("args", "field"),
    [(["nobody"], "MODEL"), (["--cores", "9999"], "--cores"), (["--cores", "x"], "--cores"),
     (["--streams", "0"], "--streams"), (["--prompts", "many"], "--prompts")],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_by_name(echo: list[str], args: list[str], field: str) -> None:
    """Exit 65 and one line with the remedy; nothing is loaded."""
    done = run("bench", *args, *echo)
    assert done.returncode == 65
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"metamusesd: invalid_request: {field}: ")


def test_a_model_that_does_not_load_is_named(tmp_path: Path) -> None:
    """What the measuring process says comes back as one line."""
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"not a model")
    done = run("bench", "--set", f"daemon.state_dir={tmp_path}/s", MODELS_DIR=str(tmp_path))
    assert done.returncode == 70 and "smollm2: " in done.stderr and "Traceback" not in done.stderr


def test_what_does_not_fit_is_left_out() -> None:
    """No prompt beyond the context, no more streams than slots: the rest is measured."""
    spec = EngineSpec(engine="echo", model_name="e", slots=2, context=200)
    rows = list(measure(spec, [64, 4096], [1, 2, 8]))
    assert [row["prompt"] for row in rows if "prompt" in row] == [64]
    assert [row["streams"] for row in rows if "streams" in row] == [1, 2]
