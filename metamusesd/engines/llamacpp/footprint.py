"""Stage 8 · any process · how much memory a model will take, from its header. Pure; imports no numpy and no llama.cpp.

A token of one sequence is a cell of the KV cache: K and V of every layer, in half precision or in 8 bit. Layers that
see a window only, or keep a state instead, take less than what is said here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metamusesd.engines.base import EngineSpec
from metamusesd.errors import MetamusesdError
from metamusesd.gguf import Header, read_header

KV_TYPES = {"f16": (1, 2), "q8_0": (32, 34)}  # ggml packs so many values into so many bytes
GPU_PROCESS_BYTES = 400 << 20  # CUDA context and compute buffers, about; not measured
PROCESS_BYTES = 60 << 20  # interpreter, libraries, compute buffers of a small model: what a worker has beside its KV


def cell_count(spec: EngineSpec, context: int, limited: bool = True) -> int:
    """How many cells the KV cache has: as told, else room for one full context and 768 tokens a slot.

    Where each sequence has cells of its own (`wants_exact`), all of them have room for a full context; also where cells
    cost nothing (not `limited`), since a sequence has a state of its own and no KV.
    """
    if wants_exact(spec) or not limited:
        return (spec.slots + spec.reserve_slots) * rounded(context)
    most = (spec.slots + spec.reserve_slots) * context
    wanted = spec.kv_cells or min(most, context + 768 * spec.slots)
    return rounded(max(wanted, context))


def kv_of(spec: EngineSpec, header: Header) -> tuple[int, int, int]:
    """(the context of a sequence, cells, bytes of a cell) of a worker with this model."""
    context = min(spec.context, header.trained_context) if header.trained_context else spec.context
    return context, cell_count(spec, context), cell_bytes(header, spec.kv_cache_type)


def rounded(cells: int) -> int:
    """llama.cpp makes cells by the 256."""
    return (cells + 255) // 256 * 256


def wants_exact(spec: EngineSpec) -> bool:
    """Whether answers shall be equal to the bit whatever else runs: the option `deterministic`."""
    return bool(spec.options.get("deterministic", False))


def cell_bytes(header: Header, kind: str = "f16") -> int:
    """Of one token, over all layers; 0 when the header does not say."""
    layers, width, heads = (
        _number(header.of_architecture(key)) for key in ("block_count", "embedding_length", "attention.head_count")
    )
    kv_heads = header.of_architecture("attention.head_count_kv") or heads
    if not (layers and width and heads):
        return 0
    per_layer = [_number(each) for each in kv_heads] if isinstance(kv_heads, list) else [_number(kv_heads)] * layers
    usual = width // heads
    lengths = sum(_number(header.of_architecture(f"attention.{part}_length")) or usual for part in ("key", "value"))
    values, size = KV_TYPES[kind]
    return sum(per_layer) * lengths * size // values


def gpu_bytes(spec: EngineSpec) -> int:
    """What a GPU must have free before the load: the weights of its layers, their KV cache, and the libraries' own. 0:
    nobody knows, because the file is no GGUF."""
    path = Path(spec.model_path)
    try:
        header = read_header(path)
    except MetamusesdError:
        return 0
    layers = _number(header.of_architecture("block_count")) or 1
    share = min(1.0, spec.gpu_layers / layers)
    _, cells, each = kv_of(spec, header)
    return int(share * (path.stat().st_size + cells * each)) + GPU_PROCESS_BYTES


def _number(value: Any) -> int:
    """A list has one for each layer: its largest."""
    if isinstance(value, list):
        return max((each for each in value if isinstance(each, int)), default=0)
    return value if isinstance(value, int) else 0
