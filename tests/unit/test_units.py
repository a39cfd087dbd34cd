"""systemd/: the unit files, as systemd-analyze reads them; `make systemd-test` runs them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from metamusesd.config import SECTIONS, Config
from metamusesd.control import EXIT_BAD_CONFIG

UNITS = Path(__file__).parents[2] / "systemd"
SERVICE = (UNITS / "metamusesd.service").read_text("utf-8")
MOST_EXPOSED_CPU, MOST_EXPOSED_GPU = 1.5, 2.0

needs_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=50)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The service as it would be installed, with a program that exists."""
    path = tmp_path / "metamusesd.service"
    path.write_text(SERVICE.replace("/opt/metamusesd/current/bin/metamusesd", "/bin/true"))
    return path


def exposure(unit: Path) -> float:
    said = analyze("security", "--offline=true", "--no-pager", str(unit)).stdout
    match = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert match, said
    return float(match[1])


@needs_analyze
@pytest.mark.parametrize("gpu", [False, True])
def test_systemd_understands_every_line(unit: Path, gpu: bool) -> None:
    """`systemd-analyze verify` has nothing to say, with the drop-in for GPUs and without it."""
    if gpu:
        add_gpu(unit)
    found = analyze("verify", "--man=no", "--recursive-errors=no", str(unit))
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@needs_analyze
def test_a_cpu_host_exposes_little(unit: Path) -> None:
    """Not more than 1.5 of 10."""
    assert exposure(unit) <= MOST_EXPOSED_CPU


@needs_analyze
def test_a_gpu_host_exposes_a_little_more(unit: Path) -> None:
    """Not more than 2.0 with the drop-in, which is really read: it does not score as without it."""
    without = exposure(unit)
    add_gpu(unit)
    assert without < exposure(unit) <= MOST_EXPOSED_GPU


def test_a_stop_has_time_for_the_default_drain() -> None:
    """TimeoutStopSec is the default of daemon.drain_s and 30 s more; a bad configuration is not started again."""
    assert f"TimeoutStopSec={Config().daemon.drain_s + 30:g}\n" in SERVICE
    assert f"RestartPreventExitStatus={EXIT_BAD_CONFIG}\n" in SERVICE


def test_every_secret_can_be_a_credential() -> None:
    """The unit hands over what config/load.py looks for, each from a file of our own in the credential store."""
    secrets = [spec.metadata["env"].lower() for kind in SECTIONS.values() for spec in fields(kind) if not spec.repr]
    given = re.findall(r"(?m)^LoadCredential=(\w+):metamusesd\.(\w+)$", SERVICE)
    assert given == [(name, name) for name in secrets]


def add_gpu(unit: Path) -> None:
    drop_in = unit.with_name(f"{unit.name}.d") / "gpu.conf"
    drop_in.parent.mkdir()
    shutil.copy(UNITS / "metamusesd-gpu.conf", drop_in)
