"""All stages · any process · structlog's bound logger, and nothing else of it.

`import structlog` brings asyncio, rich, ssl and logging along: 12 MB and 0.1 s, in a supervisor that has no use for any
of them. Its bound logger needs none; so that one module is loaded, and the rest stays where it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from structlog import BoundLoggerBase, DropEvent


def _load() -> tuple[Any, Any]:
    """DANGER: for a moment the package stands in sys.modules without having run. It is taken out again, so that a
    program which imports structlog later gets the whole of it; ours stays apart from that."""
    spec = importlib.util.find_spec("structlog")
    if "structlog" not in sys.modules and spec is not None:
        sys.modules["structlog"] = importlib.util.module_from_spec(spec)
        try:
            base = importlib.import_module("structlog._base")
            return base.BoundLoggerBase, base.DropEvent
        except (ImportError, AttributeError):
            pass  # another version has it elsewhere: all of it, then
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == "structlog"]:
                del sys.modules[name]
    whole = importlib.import_module("structlog")
    return whole.BoundLoggerBase, whole.DropEvent


if not TYPE_CHECKING:
    BoundLoggerBase, DropEvent = _load()

__all__ = ["BoundLoggerBase", "DropEvent"]
