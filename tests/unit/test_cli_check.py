"""`check --explain`, and where options come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metamusesd.config.origins import origins
from tests.unit.test_cli import run
from tests.unit.test_config import SAMPLE, uncommented

FILE = """
[daemon]
drain_s = 9
[redis]
url = "redis://:hunter2@box"
[tiers.fast]
model = "echo"
slots = 3
[models.echo]
engine = "echo"
options = { delay = "1ms" }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(FILE)
    return path


def places(file: Path, overrides: dict[str, str] | None = None, **environ: str) -> dict[str, tuple[str, str]]:
    return {each.key: (each.value, each.place) for each in origins(file, overrides or {}, environ)}


def test_each_option_names_the_place_that_set_it_last(file: Path) -> None:
    """The file, then a variable of either kind, then a flag."""
    found = places(
        file, {"tiers.fast.slots": "5"}, METAMUSESD_DAEMON__DRAIN_S="8", FAST_TIER_WORKERS="12", MODELS_DIR="/m"
    )
    assert found["tiers.fast.slots"] == ("5", "--set tiers.fast.slots")
    assert found["daemon.drain_s"] == ("8", "variable METAMUSESD_DAEMON__DRAIN_S")
    assert found["tiers.fast.concurrency"] == ("12", "variable FAST_TIER_WORKERS")
    assert found["daemon.models_dir"] == ('"/m"', "variable MODELS_DIR")
    assert found["models.echo.options.delay"] == ('"1ms"', str(file))


def test_secrets_are_not_shown(file: Path) -> None:
    """A password in a URL is hidden, a key altogether, wherever it comes from."""
    found = places(file, QDRANT_API_KEY="hunter3")
    assert found["redis.url"] == ('"redis://***@box"', str(file))
    assert found["cache.qdrant_api_key"] == ("***", "variable QDRANT_API_KEY")


def test_a_credential_is_a_place_of_its_own(file: Path, tmp_path: Path) -> None:
    """What systemd hands over goes before the file."""
    (tmp_path / "redis_url").write_text("rediss://:hunter4@box")
    found = places(file, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert found["redis.url"] == ('"rediss://***@box"', "a credential")


def test_what_is_at_its_default_is_not_listed(tmp_path: Path) -> None:
    """The sample with every option uncommented sets nothing, but for the model and tier that it must name."""
    path = tmp_path / "all.toml"
    path.write_text(uncommented())
    own = {key.partition(".")[0] for key in places(path)}
    assert own <= {"models", "tiers", "tenants"}
    assert set(places(SAMPLE)) == {"models.smollm2.file", "tiers.fast.model"}


def test_explain_says_what_would_run(file: Path, tmp_path: Path) -> None:
    """Origins, workers, memory, tiers, Redis, health: each has its place."""
    done = run("check", "--explain", "--config", str(file), "--set", f"daemon.state_dir={tmp_path}/s",
               "--set", "redis.url=embedded", "--set", "redis.appendfsync=always")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in (
        "daemon.drain_s", str(file), "--set redis.appendfsync", "usable here:", "fast-0",
        "MiB at most with a full queue", "math prompts", "(math is not enabled)", "loses nothing that was accepted",
        f"{tmp_path}/s/run/health.sock http://d/readyz",
    ):  # fmt: skip
        assert words in done.stdout, words
    assert "hunter2" not in done.stdout + done.stderr


def test_explain_counts_kv_as_it_is_kept(tmp_path: Path) -> None:
    """8 bit or 16: a worker's line says which, and what a cell takes."""
    told = {}
    for kind in ("f16", "q8_0"):
        done = run("check", "--explain", "--json", "--set", f"models.smollm2.kv_cache_type={kind}",
                   "--set", f"daemon.state_dir={tmp_path}", "--set", "models.smollm2.kv_cells=4096")  # fmt: skip
        (told[kind],) = [part for part in json.loads(done.stdout)["memory"] if part["part"] == "fast-0"]
    assert told["f16"]["why"].startswith("4096 KV cells x 22.5 KiB (models.smollm2.kv_cells)")
    assert told["q8_0"]["why"].startswith("4096 KV cells x 12.0 KiB of q8_0 (")
    assert told["f16"]["bytes"] - told["q8_0"]["bytes"] == 4096 * 30 * 3 * 2 * 64 * (2 - 34 / 32)


def test_explain_for_programs(file: Path, tmp_path: Path) -> None:
    """The same facts as JSON: who serves what a prompt wants, and what takes memory."""
    done = run("check", "--explain", "--json", "--config", str(file), "--set", f"daemon.state_dir={tmp_path}/s",
               "--set", "redis.url=embedded", "--set", "tiers.heavy.model=echo")  # fmt: skip
    told = json.loads(done.stdout)
    assert told["tiers"]["math"] == ["heavy"] and told["tiers"]["fast"] == ["fast", "heavy"]
    assert {"fast-0", "heavy-0"} <= {part["part"] for part in told["memory"]}
    assert {"key": "tiers.fast.slots", "value": "3", "from": str(file)} in told["options"]


def test_mistakes_are_explained_by_themselves(tmp_path: Path) -> None:
    """What does not run is not explained: its mistakes are, with exit 78."""
    done = run("check", "--explain", "--set", f"daemon.state_dir={tmp_path}", MODELS_DIR=str(tmp_path))
    assert done.returncode == 78 and "usable here" not in done.stdout and "models.smollm2.file" in done.stderr
