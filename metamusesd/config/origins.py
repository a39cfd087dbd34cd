"""Where each option that is not at its default was set: the file, a credential, a variable, a flag.

For people (`metamusesd check --explain`): what `load` makes of it counts. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from metamusesd.config.load import CREDENTIALS, ENVIRONMENT, FLAGS, gather
from metamusesd.config.options import CLASSES, SECTIONS, TABLES

HIDDEN = "***"
_PASSWORD = re.compile(r"//[^@/]*@")


@dataclass(frozen=True, slots=True)
class Origin:
    """One option: its key, its value for people (secrets hidden), and where it was set last."""

    key: str
    value: str
    place: str


def origins(
    path: str | Path | None, overrides: Mapping[str, str], environ: Mapping[str, str] | None = None
) -> list[Origin]:
    """Every option that is given somewhere and is not what it would be anyway, by key. Raises nothing."""
    environ = os.environ if environ is None else environ
    known: dict[str, Any] = {}
    places: dict[str, str] = {}

    def seen(place: str, data: dict[str, Any]) -> None:
        now = _flat(data)
        places.update({key: place for key, value in now.items() if key not in known or known[key] != value})
        known.clear()
        known.update(now)

    gather(path, environ, overrides, [], seen)
    return [
        Origin(key, _shown(key, known[key]), _place(key, places[key], environ))
        for key in sorted(known)
        if known[key] not in ({}, _default(key))
    ]


def _flat(data: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """`{"redis": {"url": …}}` as `{"redis.url": …}`."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, dict) and value else {f"{above}{name}": value}
    return found


def _default(key: str) -> object:
    """Of an option; MISSING when there is no such option, or it is a part of one."""
    section, _, name = key.partition(".")
    kind = SECTIONS.get(section) or TABLES.get(section)
    entry, _, part = name.partition(".")
    if section == "classes" and entry in CLASSES:
        return getattr(CLASSES[entry], part, MISSING)
    name = name if section in SECTIONS else part
    for spec in fields(kind) if kind else ():
        if spec.name == name:
            return spec.default if spec.default_factory is MISSING else spec.default_factory()
    return MISSING


def _shown(key: str, value: Any) -> str:
    section, _, name = key.partition(".")
    secret = (
        any(spec.name == name and not spec.repr for spec in fields(SECTIONS[section])) if section in SECTIONS else False
    )
    if not secret:
        return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return f'"{_PASSWORD.sub(f"//{HIDDEN}@", str(value))}"' if "://" in str(value) or value == "embedded" else HIDDEN


def _place(key: str, place: str, environ: Mapping[str, str]) -> str:
    if place == FLAGS:
        return f"--set {key}"
    if place == CREDENTIALS:
        return "a credential"
    return f"variable {_variable(key, environ)}" if place == ENVIRONMENT else place


def _variable(key: str, environ: Mapping[str, str]) -> str:
    """The variable that set it; what is said first here goes before the others."""
    section, _, name = key.partition(".")
    _, _, part = name.partition(".")
    tier = name.partition(".")[0].upper()
    specs = fields(SECTIONS[section]) if section in SECTIONS else ()
    candidates = [
        f"METAMUSESD_{section}__{name.replace('.', '__')}".upper(),
        *(spec.metadata["env"] for spec in specs if spec.name == name),
        {"enabled": f"ENABLE_{tier}_TIER", "concurrency": f"{tier}_TIER_WORKERS"}.get(part, ""),
    ]
    return next((candidate for candidate in candidates if environ.get(candidate)), "of the environment")
