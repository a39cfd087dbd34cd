"""Stage 4 · vectors process · the embedder and the stores that the configuration names."""

from __future__ import annotations

import contextlib
import shutil
import time

from metamusesd.cache.base import Embedder, Store
from metamusesd.cache.semantic import Semantic, Terms
from metamusesd.config import EMBEDDED, Config


def furnish(config: Config) -> Semantic:
    """The semantic cache, its stores not open yet. Blocks for a second. Raises EmbedderFailed, and ImportError when a
    library is not installed."""
    from metamusesd.cache.embedder import FastEmbedder

    embedder = FastEmbedder(config.embedder_dir, config.cache.embedder_threads)
    answers, promises = stores(config, embedder)
    return Semantic(embedder, answers, promises, terms_of(config))


def stores(config: Config, embedder: Embedder) -> tuple[Store, Store]:
    """(answers, promises): on a server that hosts share both are one, so that every host sees every promise."""
    from metamusesd.cache.payload import space_name

    name = space_name(config.cache.collection, embedder.identity)
    if config.cache.qdrant_url != EMBEDDED:
        from metamusesd.cache.qdrant_server import ServerStore

        shared = ServerStore(config.cache.qdrant_url, config.cache.qdrant_api_key, name)
        return shared, shared
    from metamusesd.cache.memory import MemoryStore
    from metamusesd.cache.qdrant_embedded import EmbeddedStore

    _forget_old(config, name)
    return EmbeddedStore(config.vectors_dir / name), MemoryStore()


def _forget_old(config: Config, name: str) -> None:
    """What other embedders left, once all of it has expired: nobody would sweep or purge it any more."""
    for old in config.vectors_dir.glob(f"{config.cache.collection}-*"):
        with contextlib.suppress(OSError):
            used_s = (old / "store.json").stat().st_mtime
            if old.name != name and time.time() - used_s > config.cache.ttl_hours * 3600:
                shutil.rmtree(old, ignore_errors=True)


def terms_of(config: Config) -> Terms:
    """[cache] as the semantic cache needs it."""
    cache = config.cache
    return Terms(
        similarity_threshold=cache.similarity_threshold, candidate_threshold=cache.candidate_threshold,
        ttl_ms=int(cache.ttl_hours * 3_600_000), max_entries=cache.max_entries,
    )  # fmt: skip
