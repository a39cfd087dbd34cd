"""How an option is written: once, as a field of a frozen dataclass. Standard library only."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, help: str, *, least: float | None = None, most: float | None = None,
           choices: tuple[str, ...] = (), env: str = "", secret: bool = False) -> Any:  # fmt: skip
    """A dataclass field that carries its own documentation, bounds and environment variable."""
    metadata = {"help": help, "least": least, "most": most, "choices": choices, "env": env}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)
