"""Engine benchmark · bench process · cases about the model file: a second worker's memory, a faster format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.engine import Bench
from benchmarks.load import closed_loop
from benchmarks.machine import pss_bytes
from benchmarks.ours import Layout, OurServer
from benchmarks.report import absolute, compare
from metamusesd import gguf

ALLOWED_MIB = 80
CONTEXT_TOKENS = 1024
SLOTS = 8
MIB = 2**20


async def second_worker(bench: Bench) -> None:
    """PSS of two one-core workers less that of one, both after they have worked. Bar: the KV cache + 80 MiB."""
    one = Layout(workers=1, slots=SLOTS, context_tokens=CONTEXT_TOKENS, cells=SLOTS * CONTEXT_TOKENS)
    added: list[float | None] = []
    for _ in range(bench.rounds):
        alone, both = await _pss_mib(bench, one), await _pss_mib(bench, replace(one, workers=2))
        added.append(None if alone is None or both is None else both - alone)
    if any(value is not None for value in added):
        limit = kv_mib(bench.model, one.cells) + ALLOWED_MIB
        case = f"KV cache {limit - ALLOWED_MIB:.0f} MiB a worker"
        bench.report.rows.append(absolute("PSS of a second worker", case, "MiB", added, bar=f"<= {limit:.0f}"))


async def derived(bench: Bench) -> None:
    """Output rate with each requantized file that lies beside the model, against the model as it came."""
    family = bench.model.name.split(".")[0]
    layout = Layout(workers=len(bench.cores), slots=8, context_tokens=512)
    for path in sorted(bench.model.parent.glob(f"{family}.*.gguf")):
        if path == bench.model or bench.only == "yardstick":
            continue
        rounds = []
        for _ in range(bench.rounds):
            rounds.append((await _rate(bench, layout, path), await _rate(bench, layout, bench.model)))
        case = f"8 concurrent, {path.name}"
        row = compare("output rate", case, "tok/s", rounds, against=f"metamusesd, {bench.model.name}")
        bench.report.rows.append(row)


async def _rate(bench: Bench, layout: Layout, model: Path) -> float | None:
    async with bench.ours(layout, model) as ours:
        if ours is None:
            return None
        load = await closed_loop(ours, bench.prompts.asks(8 if bench.quick else 24, 48), 8)
        return load.tokens_per_s


def kv_mib(model: Path, cells: int) -> float:
    """The size of the KV cache of so many tokens, K and V in half precision."""
    header = gguf.read_header(model)
    layers, width, heads, kv_heads = (
        int(header.of_architecture(key) or 0)
        for key in ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv")
    )
    return cells * layers * (width // heads) * kv_heads * 2 * 2 / MIB


async def _pss_mib(bench: Bench, layout: Layout) -> float | None:
    async with bench.ours(layout, cores=bench.cores[: layout.workers]) as ours:
        if ours is None:
            return None
        await _work(bench, ours, layout)
        return sum(pss_bytes(pid) for pid in ours.worker_pids()) / MIB


async def _work(bench: Bench, ours: OurServer, layout: Layout) -> None:
    """Let every slot of every worker generate, so that what is allocated lazily is there."""
    streams = layout.workers * layout.slots
    await closed_loop(ours, bench.prompts.asks(streams, 16), streams)
