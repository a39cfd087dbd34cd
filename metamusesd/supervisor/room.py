"""Supervisor · whether there is memory for one more load: what it will take, against what can be had."""

from __future__ import annotations

from collections.abc import Iterable

from metamusesd.config import Config, is_model
from metamusesd.models import size_of

MARGIN_BYTES = 256 << 20  # left free


def needed_bytes(config: Config, models: Iterable[str], private_bytes: int) -> int:
    """Each model's file once, since workers share it, what they have of their own, and the margin."""
    files = {config.model_path(config.models[name]) for name in models if config.models[name].file}
    return sum(size_of(path) for path in files if is_model(path)) + private_bytes + MARGIN_BYTES
