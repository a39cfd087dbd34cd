"""Engine benchmark · bench process · one function a case; each adds its rows to the report.

The bars are the project's own acceptance bars; a row without one is there to be read beside its neighbours.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from benchmarks import (
    engine_engines,
    engine_features,
    engine_latency,
    engine_load,
    engine_long,
    engine_model,
    engine_schema,
    engine_slots,
)
from benchmarks.engine import Bench
from benchmarks.engine_loops import CONTEXT_TOKENS, all_cores, load_rows, loads, one_core
from benchmarks.load import Server
from benchmarks.machine import pinned
from benchmarks.ours import Layout
from benchmarks.report import compare

SPIN = "while True: pass"


async def throughput(bench: Bench) -> None:
    """Output tokens/s and TTFT at 1, 8 and 16 concurrent requests, for both layouts."""
    for layout, floor in ((one_core(bench), ">= 0.65"), (all_cores(bench), ">= 0.95")):
        best = layout.workers > 1 or len(bench.cores) == 1
        async with bench.ours(layout) as ours:
            for concurrency in (1, 8, 16):
                async with bench.yardstick(concurrency, CONTEXT_TOKENS) as theirs:
                    found = await loads(bench, [ours, theirs], concurrency)
                case = f"{concurrency} concurrent, {layout.name(len(bench.cores))}"
                bars = (floor, None) if concurrency == 1 else (">= 1.2", "<= 0.7") if best else (None, None)
                load_rows(bench, case, found, bars)


async def on_gpu(bench: Bench) -> None:
    """The same at 1, 16 and 64 concurrent requests on the GPUs of the run: one worker with 64 slots."""
    layout = Layout(workers=1, slots=64, context_tokens=CONTEXT_TOKENS, cells=64 * CONTEXT_TOKENS)
    async with bench.ours(layout) as ours:
        for concurrency in (1, 16, 64):
            async with bench.yardstick(concurrency, CONTEXT_TOKENS) as theirs:
                found = await loads(bench, [ours, theirs], concurrency)
            load_rows(bench, f"{concurrency} concurrent", found, (None, None))


async def busy_neighbour(bench: Bench) -> None:
    """8 concurrent while another process holds one of the cores; the server as it comes, and helped in two ways."""
    passive = {"OMP_WAIT_POLICY": "passive"}
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(bench.ours(one_core(bench)))
        servers: list[Server | None] = [ours]
        for threads, environment, label in ((0, None, ""), (0, passive, ", OMP passive"), (1, None, ", -t 1")):
            context = bench.yardstick(8, CONTEXT_TOKENS, threads=threads, environment=environment, label=label)
            servers.append(await stack.enter_async_context(context))
        with _spinner(bench.cores[-1]):
            found = await loads(bench, servers, 8, each=1)  # the server's default may fall to 5 tokens/s
    rates = [[None if load is None else load.tokens_per_s for load in turn] for turn in found]
    name = bench.yardstick_name
    against = [(1, f"{name}, its default", ">= 2.0"), (2, f"{name}, OMP passive", None), (3, f"{name}, -t 1", None)]
    for place, label, bar in against:
        pairs = [(turn[0], turn[place]) for turn in rates]
        bench.report.rows.append(
            compare("output rate", "8 concurrent, busy core", "tok/s", pairs, against=label, bar=bar)
        )
    pairs = [(turn[0], max((rate for rate in turn[2:] if rate), default=None)) for turn in rates]
    label = f"{name}, the better of OMP passive and -t 1"
    bench.report.rows.append(
        compare("output rate", "8 concurrent, busy core", "tok/s", pairs, against=label, bar=">= 1.2")
    )


class _spinner:
    """A process that burns one core while the block runs."""

    def __init__(self, core: int) -> None:
        self._command = pinned([core], [sys.executable, "-c", SPIN])

    def __enter__(self) -> None:
        self._child = subprocess.Popen(self._command)

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.wait()


CASES: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "throughput": throughput,
    "busy": busy_neighbour,
    "engines": engine_engines.engines,
    "features": engine_features.features,
    "schema": engine_schema.schema,
    "persona": engine_latency.persona,
    "long-prompt": engine_latency.long_prompt,
    "critical": engine_latency.critical,
    "long": engine_long.long,
    "urgent": engine_long.urgent,
    "load": engine_load.load,
    "memory": engine_model.second_worker,
    "slots": engine_slots.slots,
    "derived": engine_model.derived,
    "gpu": on_gpu,
}
ON_GPU = ("gpu",)  # what is run when no case is named
ON_CPU = tuple(name for name in CASES if name not in ON_GPU)
