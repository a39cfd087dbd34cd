"""Supervisor · what a new configuration changes, and for whom. Pure, but for one look at a model's file.

the daemon's place, Redis, health, whether there is a semantic cache    only a restart can change it: refused
what a worker's process is made of                                     that worker is replaced
what the dispatcher, or vectors, was made of                           it is replaced; the workers stay
anything else (limits of the supervisor, a tier's number of workers)   is taken over as it is
"""

from __future__ import annotations

from dataclasses import fields, replace

from metamusesd.config import Config, Model
from metamusesd.supervisor import semantic
from metamusesd.supervisor.spec import ChildSpec, Kind

RESTART = ("daemon.state_dir", "daemon.runtime_dir", "redis", "health")  # sections, or single options
NOT_THE_DISPATCHERS = ("daemon", "models", "tiers", "source", "choices", "redis", "health")


def needs_restart(old: Config, new: Config) -> list[str]:
    """One line for every change that a reload cannot make."""
    changed = [
        f"{section}.{name}"
        for section in dict.fromkeys(place.partition(".")[0] for place in RESTART)
        if hasattr(old, section)
        for name in _differing(getattr(old, section), getattr(new, section))
        if section in RESTART or f"{section}.{name}" in RESTART
    ]
    for name in ("enabled", "semantic"):
        if getattr(old.cache, name) != getattr(new.cache, name) and semantic.is_wanted(old) != semantic.is_wanted(new):
            changed.append(f"cache.{name}")
    return [f"{name}: changed, and a reload cannot change it; restart the daemon, or put it back" for name in changed]


def makings(spec: ChildSpec, config: Config) -> tuple[object, ...]:
    """All that this child's process is made of: when that is another, the process must be another."""
    if spec.kind is Kind.DISPATCHER:
        sections = [getattr(config, name) for name in _sections() if name not in NOT_THE_DISPATCHERS]
        tiers = {name: tier.models for name, tier in config.enabled_tiers().items()}
        defaults = {name: (model.temperature, model.top_p, model.max_tokens) for name, model in config.models.items()}
        return (*sections, tiers, defaults, config.daemon.drain_s, config.daemon.hang_s)
    if spec.kind is Kind.VECTORS:
        return config.cache, config.embedder_dir
    if spec.worker is None:
        return ()
    model = config.models[spec.worker.model]
    return spec.worker, replace(model, canary={}, canary_tokens_s=0.0, format=""), *_file(config, model)


def _file(config: Config, model: Model) -> tuple[object, ...]:
    """Which file it is: another one in its place is another model."""
    if not model.file:
        return ()
    path = config.model_path(model)
    try:
        seen = path.stat()
    except OSError:
        return (path,)
    return path, seen.st_ino, seen.st_size, seen.st_mtime_ns


def _sections() -> list[str]:
    return [field.name for field in fields(Config)]


def _differing(old: object, new: object) -> list[str]:
    return [field.name for field in fields(old) if getattr(old, field.name) != getattr(new, field.name)]  # type: ignore[arg-type]
