"""What a reload may change, and whom a change concerns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metamusesd.config import Choice, Config
from metamusesd.config.options import Daemon, Model, Routing, Tier
from metamusesd.control import WorkerSpec
from metamusesd.supervisor.changes import makings, needs_restart
from metamusesd.supervisor.spec import ChildSpec, Kind

DISPATCHER, VECTORS = ChildSpec("dispatcher", Kind.DISPATCHER), ChildSpec("vectors", Kind.VECTORS)
WORKER = ChildSpec("fast-0", Kind.WORKER, row=0, worker=WorkerSpec("fast-0", "fast", "smollm2", (0,)))
BASE = Config(daemon=Daemon(models_dir="/nowhere"))
MODEL = BASE.models["smollm2"]
CHOICE = Choice(MODEL.file, "x.gguf", why="it is faster")


def touched(new: Config) -> set[str]:
    """The names of those who must be replaced."""
    return {spec.name for spec in (DISPATCHER, VECTORS, WORKER) if makings(spec, BASE) != makings(spec, new)}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, set()),
        ({"tiers": {"fast": Tier(model="smollm2", workers=7)}}, set()),
        ({"daemon": replace(BASE.daemon, hang_least_s=1.0)}, set()),
        ({"routing": Routing(margin=0.5)}, {"dispatcher"}),
        ({"tiers": {**BASE.tiers, "heavy": Tier(model="smollm2")}}, {"dispatcher"}),
        ({"models": {"smollm2": replace(MODEL, temperature=0.1)}}, {"dispatcher", "fast-0"}),
        ({"models": {"smollm2": replace(MODEL, context=512)}}, {"fast-0"}),
        ({"models": {"smollm2": replace(MODEL, canary={"hi": ""}, canary_tokens_s=9.0)}}, set()),
        ({"models": {"smollm2": MODEL, "other": Model(file="x")}}, {"dispatcher"}),
        ({"models": {"smollm2": replace(MODEL, format="auto")}, "choices": {"smollm2": CHOICE}}, set()),
        ({"models": {"smollm2": replace(MODEL, file="x.gguf")}, "choices": {"smollm2": CHOICE}}, {"fast-0"}),
        ({"cache": replace(BASE.cache, ttl_hours=1.0)}, {"dispatcher", "vectors"}),
    ],
)
def test_only_those_are_replaced_who_were_made_of_it(changes: dict[str, Any], names: set[str]) -> None:
    """And a change that concerns the supervisor alone replaces nobody."""
    assert touched(replace(BASE, **changes)) == names


def test_another_file_under_the_same_name_is_another_model(tmp_path: Path) -> None:
    """The worker that holds the old one is replaced."""
    config = replace(BASE, daemon=Daemon(models_dir=str(tmp_path)), models={"smollm2": Model(file="m.gguf")})
    (tmp_path / "m.gguf").write_bytes(b"one")
    before = makings(WORKER, config)
    assert makings(WORKER, config) == before
    (tmp_path / "new").write_bytes(b"two!")
    (tmp_path / "new").replace(tmp_path / "m.gguf")
    assert makings(WORKER, config) != before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"daemon": replace(BASE.daemon, state_dir="/elsewhere")}, "daemon.state_dir"),
        ({"redis": replace(BASE.redis, prefix="other")}, "redis.prefix"),
        ({"cache": replace(BASE.cache, semantic=False)}, "cache.semantic"),
    ],
)
def test_what_only_a_restart_can_change_is_named(changes: dict[str, Any], named: str) -> None:
    """One line, with the remedy."""
    [line] = needs_restart(BASE, replace(BASE, **changes))
    assert line.startswith(f"{named}: ") and "restart" in line


def test_what_a_reload_can_change_needs_no_restart() -> None:
    """Limits, rules, and a cache that is off anyway."""
    off = replace(BASE, cache=replace(BASE.cache, enabled=False))
    assert needs_restart(off, replace(off, cache=replace(off.cache, semantic=False))) == []
    assert needs_restart(BASE, replace(BASE, daemon=replace(BASE.daemon, drain_s=1.0), routing=Routing(margin=1))) == []
