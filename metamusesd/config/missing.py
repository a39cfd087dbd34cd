"""Which files a configuration names and nobody has put there, with the remedy. Standard library only."""

from __future__ import annotations

from metamusesd.config.options import EMBEDDER_FILES, Config


def missing_models(config: Config) -> list[str]:
    """One line for every model file of an enabled tier that is not there."""
    lines = []
    for tier_name, tier in config.enabled_tiers().items():
        for name in tier.models:
            model = config.models[name]
            if model.engine != "echo" and not config.model_path(model).is_file():
                lines.append(
                    f"models.{name}.file: {config.model_path(model)} does not exist (tier {tier_name}); "
                    "run `metamusesd models fetch` or set daemon.models_dir"
                )
    return lines


def missing_embedder(config: Config) -> str:
    """What is not there of the embedder, and the remedy; empty when all of it is there."""
    missing = [name for name in EMBEDDER_FILES if not (config.embedder_dir / name).is_file()]
    if not missing:
        return ""
    return (
        f"{config.embedder_dir} has no {', '.join(missing)}; run `metamusesd models fetch minilm` or name another "
        "directory in cache.embedder, then restart the daemon"
    )
