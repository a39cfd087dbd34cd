"""Supervisor · whether there is a semantic cache: what is wanted, what is missing for it, and what its deaths mean.

The cache is a help and never a need: without it the daemon serves, and says on /status what is off and why. One
mistake is the operator's to correct before anything runs: a store that the configuration names and that can never be
used.
"""

from __future__ import annotations

import importlib.util

from metamusesd.board import SlotStatus
from metamusesd.config import EMBEDDED, Config, missing_embedder
from metamusesd.control import EXIT_BAD_CONFIG
from metamusesd.supervisor.slot import Slot

LIBRARIES = {"fastembed": "fastembed", "qdrant_edge": "qdrant-edge-py", "qdrant_client": "qdrant-client"}


def is_wanted(config: Config) -> bool:
    """The configuration asks for it."""
    return config.cache.enabled and config.cache.semantic


def what_is_missing(config: Config) -> str:
    """Why it cannot be started, and the remedy; empty: nothing is missing, or it is not wanted. Imports nothing."""
    if not is_wanted(config):
        return ""
    store = "qdrant_edge" if config.cache.qdrant_url == EMBEDDED else "qdrant_client"
    missing = [name for name in ("fastembed", store) if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(LIBRARIES[name] for name in missing)
        return f"{names} not installed; run `pip install 'metamusesd[cache]'`, then restart the daemon"
    return missing_embedder(config)


def refuses_to_start(slot: Slot) -> bool:
    """Its very first process found a store that cannot be used as it is: the daemon does not start."""
    return slot.last_exit == EXIT_BAD_CONFIG and not slot.ever_ready and slot.generation == 1


def limitation(slot: Slot | None, missing: str) -> str:
    """What is off, and why; empty: all is well, or it is not wanted."""
    if slot is None:
        return f"semantic cache off: {missing}" if missing else ""
    if slot.status is not SlotStatus.READY:
        said = (slot.last_error or {}).get("message")
        return f"semantic cache off: vectors is {slot.status.name.lower()}" + (f": {said}" if said else "")
    return f"semantic cache off: {slot.trouble}" if slot.trouble else ""
