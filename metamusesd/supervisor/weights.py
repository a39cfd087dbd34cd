"""Supervisor · what the log says of models whose weights were chosen for this host (metamusesd/formats.py)."""

from __future__ import annotations

from metamusesd.config import Config
from metamusesd.log import Logger


def tell_weights(config: Config, log: Logger) -> None:
    """A line for each of them; a warning where the file is loaded as it is because no choice holds."""
    for name, choice in config.choices.items():
        if choice.remedy:
            log.warning("weights as configured", model=name, file=choice.file, because=choice.why, remedy=choice.remedy)
        else:
            log.info("weights", model=name, file=choice.file, because=choice.why)
