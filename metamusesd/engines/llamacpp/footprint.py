"""Stage 8 · any process · how much memory a model will take, from its header. Pure; imports no numpy and no llama.cpp.

A token of one sequence is a cell of the KV cache: K and V of every layer that has them, in half precision or in 8 bit.
Layers that keep a state (`states.py`) have one for each sequence. Those that see a window only have all cells, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metamusesd.engines.base import EngineSpec
from metamusesd.engines.llamacpp.states import kv_heads, number, state_bytes
from metamusesd.errors import MetamusesdError
from metamusesd.gguf import Header, read_header

KV_TYPES = {"f16": (1, 2), "q8_0": (32, 34)}  # ggml packs so many values into so many bytes
GPU_PROCESS_BYTES = 680 << 20  # CUDA context and libraries: 620 to 650 MiB on an H200 with CUDA 13.0
BATCH_TOKENS = 512  # in one batch at most
PROCESS_BYTES = 60 << 20  # interpreter, libraries, compute buffers of a small model: what a worker has beside its KV


@dataclass(frozen=True, slots=True)
class Need:
    """What the sequences of a worker take beside its weights: a cell for each token, a state for each sequence."""

    context: int  # of one sequence
    cells: int
    cell_bytes: int  # 0: no layer has KV, or nobody knows
    states: int
    state_bytes: int  # 0: no layer keeps one
    kind: str = "f16"  # of the KV cache

    @property
    def bytes_(self) -> int:
        return self.cells * self.cell_bytes + self.states * self.state_bytes

    def __str__(self) -> str:
        """`11136 KV cells x 22.5 KiB`, `12 states x 76.0 KiB`, or both."""
        kept = "" if self.kind == "f16" else f" of {self.kind}"
        cells = f"{self.cells} KV cells x {self.cell_bytes / 1024:.1f} KiB{kept}"
        states = f"{self.states} states x {self.state_bytes / 1024:.1f} KiB"
        return " + ".join([cells] * bool(self.cell_bytes or not self.state_bytes) + [states] * bool(self.state_bytes))


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


def need_of(spec: EngineSpec, header: Header) -> Need:
    """What a worker with this model will take."""
    context = min(spec.context, header.trained_context) if header.trained_context else spec.context
    each, state = cell_bytes(header, spec.kv_cache_type), state_bytes(header)
    cells = cell_count(spec, context, limited=each > 0 or not state)
    return Need(context, cells, each, spec.slots + spec.reserve_slots, state, spec.kv_cache_type)


def rounded(cells: int) -> int:
    """llama.cpp makes cells by the 256."""
    return (cells + 255) // 256 * 256


def wants_exact(spec: EngineSpec) -> bool:
    """Whether answers shall be equal to the bit whatever else runs: the option `deterministic`."""
    return bool(spec.options.get("deterministic", False))


def cell_bytes(header: Header, kind: str = "f16") -> int:
    """Of one token, over all layers that have KV; 0 when the header does not say."""
    width, heads = (number(header.of_architecture(key)) for key in ("embedding_length", "attention.head_count"))
    if not (width and heads):
        return 0
    usual = width // heads
    lengths = sum(number(header.of_architecture(f"attention.{part}_length")) or usual for part in ("key", "value"))
    values, size = KV_TYPES[kind]
    return kv_heads(header) * lengths * size // values


def gpu_bytes(spec: EngineSpec) -> int:
    """What a GPU must have free before the load: the weights of its layers, their KV and states, what a batch computes
    with, the libraries' own. 0: nobody knows, because the file is no GGUF."""
    path = Path(spec.model_path)
    try:
        header = read_header(path)
    except MetamusesdError:
        return 0
    layers = number(header.of_architecture("block_count")) or 1
    share = min(1.0, spec.gpu_layers / layers)
    return int(share * (path.stat().st_size + need_of(spec, header).bytes_)) + compute_bytes(header) + GPU_PROCESS_BYTES


def compute_bytes(header: Header) -> int:
    """Of one batch, about: some vectors of each of its tokens are there at a time, in full precision."""
    width, inner = (number(header.of_architecture(key)) for key in ("embedding_length", "feed_forward_length"))
    return 4 * BATCH_TOKENS * (8 * width + 3 * inner)
