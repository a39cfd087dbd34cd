"""Which weights stand for a model with `format = "auto"`: plain data that metamusesd/formats.py makes. Standard library
only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """Of one model. Config.models has `file` as that model's file: whoever names or loads it follows the choice."""

    source: str  # the file that the configuration names
    file: str  # the file that is loaded; the source, if nothing better holds
    why: str  # for people
    source_digest: str = ""  # of the source, where another file is loaded
    remedy: str = ""  # what to run or change where nothing could be chosen; empty: the choice holds
