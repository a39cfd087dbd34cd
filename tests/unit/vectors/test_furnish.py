"""Which stores the configuration names, and what becomes of those of other embedders."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

from metamusesd.cache.memory import MemoryStore
from metamusesd.cache.qdrant_embedded import EmbeddedStore
from metamusesd.cache.qdrant_server import ServerStore
from metamusesd.config import load
from metamusesd.vectors.furnish import stores

EMBEDDER = SimpleNamespace(identity="a" * 16)


def test_the_embedded_default_and_a_shared_server(tmp_path: Path) -> None:
    """On disk with promises in memory; or one store for both, so that every host sees every promise."""
    config = load(environ={}, overrides={"daemon.state_dir": str(tmp_path)})
    answers, promises = stores(config, EMBEDDER)  # type: ignore[arg-type]
    assert isinstance(answers, EmbeddedStore) and isinstance(promises, MemoryStore)
    config = load(environ={"QDRANT_URL": "http://127.0.0.1:1"}, overrides={"daemon.state_dir": str(tmp_path)})
    answers, promises = stores(config, EMBEDDER)  # type: ignore[arg-type]
    assert isinstance(answers, ServerStore) and promises is answers


def test_what_other_embedders_left_goes_when_all_of_it_has_expired(tmp_path: Path) -> None:
    """Nobody would sweep it any more; what is younger, or not ours, stays."""
    config = load(environ={}, overrides={"daemon.state_dir": str(tmp_path)})
    for name, days in (("metamuse_cache-old", 2), ("metamuse_cache-young", 0), ("another-old", 2)):
        folder = config.vectors_dir / name
        folder.mkdir(parents=True)
        (folder / "store.json").write_text("{}")
        then_s = time.time() - days * 86_400
        os.utime(folder / "store.json", (then_s, then_s))
    stores(config, EMBEDDER)  # type: ignore[arg-type]
    assert sorted(path.name for path in config.vectors_dir.iterdir()) == ["another-old", "metamuse_cache-young"]
