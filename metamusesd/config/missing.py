"""Which files a configuration names and nobody has put there, with the remedy. Standard library only."""

from __future__ import annotations

from pathlib import Path

from metamusesd.config.options import EMBEDDER_FILES, Config


def is_there(path: Path) -> bool:
    """A file that we may see. Path.is_file raises where a directory on the way is closed to this user."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_model(path: Path) -> bool:
    """A file, or a directory that says what model it holds."""
    return is_there(path) or is_there(path / "config.json")


def is_closed(path: Path) -> bool:
    """This user may not even see whether it is there."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def missing_models(config: Config) -> list[str]:
    """One line for every model file of an enabled tier that is not there."""
    lines = []
    for tier_name, tier in config.enabled_tiers().items():
        for name in tier.models:
            model = config.models[name]
            path = config.model_path(model)
            if model.engine != "echo" and is_closed(path):
                lines.append(
                    f"models.{name}.file: {path} is closed to this user; run this as root or the daemon's user"
                )
            elif model.engine != "echo" and not is_model(path):
                lines.append(
                    f"models.{name}.file: {path} does not exist (tier {tier_name}); "
                    "run `metamusesd models fetch` or set daemon.models_dir"
                )
    return lines


def missing_embedder(config: Config) -> str:
    """What is not there of the embedder, and the remedy; empty when all of it is there."""
    missing = [name for name in EMBEDDER_FILES if not is_there(config.embedder_dir / name)]
    if not missing:
        return ""
    return (
        f"{config.embedder_dir} has no {', '.join(missing)}; run `metamusesd models fetch minilm` or name another "
        "directory in cache.embedder, then restart the daemon"
    )
