"""Engine benchmark · bench process · what a second worker of the same model costs in proportional memory (PSS)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.engine import Bench
from benchmarks.load import closed_loop
from benchmarks.machine import pss_bytes
from benchmarks.ours import Layout, OurServer
from benchmarks.report import absolute

ALLOWED_MIB = 80
CONTEXT_TOKENS = 1024
SLOTS = 8
MIB = 2**20


async def second_worker(bench: Bench) -> None:
    """PSS of two workers less that of one, both after they have worked; the bar is the KV cache plus 80 MiB."""
    one = Layout(workers=1, slots=SLOTS, context_tokens=CONTEXT_TOKENS, cells=SLOTS * CONTEXT_TOKENS)
    added: list[float | None] = []
    for _ in range(bench.rounds):
        alone, both = await _pss_mib(bench, one), await _pss_mib(bench, replace(one, workers=2))
        added.append(None if alone is None or both is None else both - alone)
    if any(value is not None for value in added):
        limit = kv_mib(bench.model, one.cells) + ALLOWED_MIB
        case = f"KV cache {limit - ALLOWED_MIB:.0f} MiB a worker"
        bench.report.rows.append(absolute("PSS of a second worker", case, "MiB", added, bar=f"<= {limit:.0f}"))


def kv_mib(model: Path, cells: int) -> float:
    """The size of the KV cache of so many tokens, K and V in half precision."""
    import llama_cpp

    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    handle = llama_cpp.llama_model_load_from_file(str(model).encode(), params)
    embedding = llama_cpp.llama_model_n_embd(handle) // llama_cpp.llama_model_n_head(handle)
    values = llama_cpp.llama_model_n_layer(handle) * llama_cpp.llama_model_n_head_kv(handle) * embedding
    llama_cpp.llama_model_free(handle)
    return float(cells * values * 2 * 2) / MIB


async def _pss_mib(bench: Bench, layout: Layout) -> float | None:
    async with bench.ours(layout) as ours:
        if ours is None:
            return None
        await _work(bench, ours, layout)
        return sum(pss_bytes(pid) for pid in ours.worker_pids()) / MIB


async def _work(bench: Bench, ours: OurServer, layout: Layout) -> None:
    """Let every slot of every worker generate, so that what is allocated lazily is there."""
    streams = layout.workers * layout.slots
    await closed_loop(ours, bench.prompts.asks(streams, 16), streams)
