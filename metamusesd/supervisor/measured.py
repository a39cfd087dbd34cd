"""Supervisor · what `metamusesd bench --write` has measured of the models on this machine; placement asks here first.

    <state_dir>/rates.json
    {"machine": "AMD EPYC, family 25 model 17 stepping 1, 2 CPUs",
     "models": {"sha256:b179…": {"model": "smollm2", "cores": 1, "at": "2026-11-26T13:05:00+00:00", "load_s": 0.9,
                                 "prefill": {"64": 310.2, …}, "decode": {"1": 81.5, "8": 140.3, …},   tokens/s by
                                 "rss_bytes": …, "private_bytes": …}}}                tokens of a prompt, by streams

Figures of another machine or of another model file are not used. Whatever is wrong with the file, it is as if nothing
had been measured: the daemon starts on estimates.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metamusesd.config import Config
from metamusesd.models import known_digest, write_json
from metamusesd.processor import CPUINFO, processor


def rates_path(config: Config) -> Path:
    """Where they are kept."""
    return config.state_dir / "rates.json"


def machine(cpuinfo: Path = CPUINFO) -> str:
    """What must be the same for figures to hold: the processor, and how many of it."""
    return f"{processor(cpuinfo)}, {os.cpu_count()} CPUs"


def measured(config: Config, here: str | None = None) -> dict[str, dict[str, Any]]:
    """By digest, what was measured on this machine."""
    try:
        content = json.loads(rates_path(config).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("machine") != (here or machine()):
        return {}
    models = content.get("models")
    return {digest: row for digest, row in models.items() if isinstance(row, dict)} if isinstance(models, dict) else {}


def keep(config: Config, rows: Mapping[str, Mapping[str, Any]]) -> bool:
    """Write these down beside what is known of other models. False: the state directory cannot be written."""
    try:
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return write_json(rates_path(config), {"machine": machine(), "models": {**measured(config), **rows}})


def core_rates(config: Config) -> dict[str, float]:
    """Tokens/s of one stream on one core, by model name, for every model whose very file was measured here."""
    known = measured(config)
    rows = (
        {name: known.get(known_digest(config.model_path(model))) for name, model in config.models.items()}
        if known
        else {}
    )
    return {name: rate for name, row in rows.items() if row is not None and (rate := _core_rate(row)) > 0}


def _core_rate(row: Mapping[str, Any]) -> float:
    decode, cores = row.get("decode"), row.get("cores")
    rate = decode.get("1") if isinstance(decode, dict) else None
    if not isinstance(rate, int | float) or not isinstance(cores, int) or cores < 1 or row.get("gpus"):
        return 0.0
    return rate / cores
