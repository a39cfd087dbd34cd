"""Operate benchmark · bench process · the daemon of the cases at rest: two one-core workers of the real model."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from benchmarks.faults.family import Family
from metamusesd.config import DEMO_MODEL

CONFIG = """
[daemon]
state_dir = "{folder}/s"
models_dir = "{models}"
[redis]
appendfsync = "{appendfsync}"
[models.real]
file = "{file}"
[tiers.fast]
model = "real"
workers = 1
[tiers.medium]
model = "real"
workers = 1
slots = {slots}
"""


def model_of(args: argparse.Namespace) -> Path:
    """The file, read once so that it is in the page cache."""
    path: Path = (args.model or Path("models") / DEMO_MODEL).resolve()
    path.read_bytes()
    return path


def family(model: Path) -> Family:
    """Not started. The embedder beside the model is used when it is there."""
    return Family("everysec", CONFIG, models=model.parent, file=model.name, slots=8)


def change_slots(home: Family, model: Path, slots: int) -> None:
    """Another configuration, in which one worker is another one."""
    more: dict[str, Any] = {"models": model.parent, "file": model.name, "slots": slots}
    home.config.write_text(CONFIG.format(folder=home.folder, appendfsync="everysec", **more))


def said_load() -> str:
    """For a note: how disturbed the run was."""
    return f"load average {os.getloadavg()[0]:.2f} at its end"
