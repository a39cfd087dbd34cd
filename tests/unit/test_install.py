"""packaging/install.sh: what it refuses before it touches anything; `make systemd-test` lets it work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "packaging/install.sh"


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], **environ}
    return subprocess.run([str(SCRIPT), *arguments], env=environ, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("verb", ["install", "uninstall"])
@pytest.mark.parametrize("prefix", ["opt/metamusesd", "/"])
def test_a_prefix_must_be_a_directory_of_its_own(tmp_path: Path, verb: str, prefix: str) -> None:
    """A relative one, or the root of all files: the line says what would be right, and nothing is made or removed."""
    (tmp_path / "env-1").mkdir()
    done = run(verb, PREFIX=prefix, DESTDIR=str(tmp_path))
    assert done.returncode == 1
    assert f"PREFIX={prefix}" in done.stderr and "/opt/metamusesd" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["env-1"]


def test_it_does_what_it_is_told_and_nothing_else(tmp_path: Path) -> None:
    """Without a verb, or with another one: how to use it."""
    for arguments in ((), ("remove",)):
        done = run(*arguments, DESTDIR=str(tmp_path))
        assert (done.returncode, done.stdout) == (1, "") and "install" in done.stderr


def test_uninstalling_a_stage_leaves_what_is_not_ours(tmp_path: Path) -> None:
    """Configuration and state stay, and other files beside ours; PURGE=1 takes the former."""
    ours = ["opt/metamusesd/env-1/bin/python", "usr/local/lib/systemd/system/metamusesd.service"]
    theirs = ["opt/metamusesd/notes", "etc/metamusesd/metamusesd.toml", "usr/local/lib/systemd/system/other.service"]
    for name in (*ours, *theirs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    done = run("uninstall", DESTDIR=str(tmp_path))
    assert done.returncode == 0 and "PURGE=1" in done.stdout
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted(theirs)
    run("uninstall", DESTDIR=str(tmp_path), PURGE="1")
    assert not (tmp_path / "etc/metamusesd").exists() and (tmp_path / theirs[0]).exists()
