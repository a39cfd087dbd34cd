"""Stage 0 · command line · how much memory the configured daemon will take, by the headers of its model files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metamusesd.config import EMBEDDED, Config, is_there
from metamusesd.control import WorkerSpec
from metamusesd.engines.base import EngineSpec
from metamusesd.engines.llamacpp.footprint import PROCESS_BYTES, need_of
from metamusesd.errors import MetamusesdError
from metamusesd.gguf import read_header

OURS_BYTES = 80 << 20  # supervisor and dispatcher
VECTORS_BYTES = 200 << 20  # embedder and store, while the answers are few


@dataclass(frozen=True, slots=True)
class Part:
    """Something that takes memory. `shared`: mapped from a file, once for all who have it."""

    name: str
    bytes_: int
    why: str
    on_gpu: bool = False


def parts(config: Config, workers: Sequence[WorkerSpec]) -> list[Part]:
    """Weights once a model file, KV cache and process once a worker, then the others."""
    found: list[Part] = []
    for name in dict.fromkeys(worker.model for worker in workers):
        model, mine = config.models[name], [worker for worker in workers if worker.model == name]
        path, on_gpu = config.model_path(model), any(worker.gpus for worker in mine) and model.gpu_layers != 0
        if model.engine != "echo" and is_there(path):
            copies, words = (len(mine), "a copy each") if on_gpu else (1, "mapped once, shared by")
            why = f"{path.name}, {words} {len(mine)} worker{'s' * (len(mine) > 1)}"
            found.append(Part(f"weights of {name}", path.stat().st_size * copies, why, on_gpu))
        found += [_worker(config, worker, on_gpu=on_gpu) for worker in mine]
    found.append(Part("supervisor, dispatcher", OURS_BYTES, "about"))
    if config.cache.enabled and config.cache.semantic:
        found.append(Part("vectors", VECTORS_BYTES, "embedder and store, about; more with cache.max_entries"))
    if config.redis.url == EMBEDDED:
        found.append(Part("redis", config.queue.max_bytes + config.cache.max_bytes * config.cache.enabled,
                          "at most: queue.max_bytes + cache.max_bytes"))  # fmt: skip
    return found


def _worker(config: Config, worker: WorkerSpec, *, on_gpu: bool) -> Part:
    model = config.models[worker.model]
    try:
        header = read_header(config.model_path(model)) if model.engine != "echo" else None
    except MetamusesdError:
        header = None
    if header is None:
        return Part(worker.name, PROCESS_BYTES, "its process, about")
    spec = EngineSpec("llamacpp", worker.model, slots=worker.slots, reserve_slots=worker.reserve_slots,
                      context=model.context, kv_cells=model.kv_cells, kv_cache_type=model.kv_cache_type,
                      options=model.options)  # fmt: skip
    need = need_of(spec, header)
    told = f"models.{worker.model}.kv_cells" if model.kv_cells and need.cell_bytes else ""
    why = f"{need} ({told or f'context {need.context}, {worker.slots} slots'})"
    return Part(worker.name, need.bytes_ + PROCESS_BYTES, f"{why} + {PROCESS_BYTES >> 20} MiB of its process", on_gpu)


def total_bytes(found: Sequence[Part]) -> int:
    """Of main memory. Redis counts in full, though it seldom gets there."""
    return sum(part.bytes_ for part in found if not part.on_gpu)


def usual_bytes(found: Sequence[Part]) -> int:
    """What is taken soon after the start: without the bound of Redis, which fills with jobs only."""
    return sum(part.bytes_ for part in found if not part.on_gpu and part.name != "redis")
