"""Engine benchmark · bench process · one function a case; each adds its rows to the report.

The bars are the project's own acceptance bars; a row without one is there to be read beside its neighbours.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from benchmarks import engine_latency, engine_model
from benchmarks.engine import Bench
from benchmarks.load import Load, Server, Style, closed_loop
from benchmarks.machine import pinned
from benchmarks.ours import Layout
from benchmarks.report import compare

CONTEXT_TOKENS = 512  # of a slot, on both sides: 160 prompt tokens, the template, the answer
OUTPUT_TOKENS = 96
SPIN = "while True: pass"


def one_core(bench: Bench) -> Layout:
    """A worker on each core; slots for at least 16 streams."""
    workers = len(bench.cores)
    return Layout(workers=workers, slots=max(2, 16 // workers), context_tokens=CONTEXT_TOKENS)


def all_cores(bench: Bench) -> Layout:
    """One worker on all cores."""
    return Layout(workers=1, slots=16, context_tokens=CONTEXT_TOKENS)


async def throughput(bench: Bench) -> None:
    """Output tokens/s and TTFT at 1, 8 and 16 concurrent requests, for both layouts."""
    for layout, floor in ((one_core(bench), ">= 0.65"), (all_cores(bench), ">= 0.95")):
        best = layout.workers > 1 or len(bench.cores) == 1
        async with bench.ours(layout) as ours:
            for concurrency in (1, 8, 16):
                async with bench.yardstick(concurrency, CONTEXT_TOKENS) as theirs:
                    loads = await _loads(bench, [ours, theirs], concurrency)
                case = f"{concurrency} concurrent, {layout.name(len(bench.cores))}"
                bars = (floor, None) if concurrency == 1 else (">= 1.2", "<= 0.7") if best else (None, None)
                _load_rows(bench, case, loads, bars)


async def on_gpu(bench: Bench) -> None:
    """The same at 1, 16 and 64 concurrent requests on the GPUs of the run: one worker with 64 slots."""
    layout = Layout(workers=1, slots=64, context_tokens=CONTEXT_TOKENS, cells=64 * CONTEXT_TOKENS)
    async with bench.ours(layout) as ours:
        for concurrency in (1, 16, 64):
            async with bench.yardstick(concurrency, CONTEXT_TOKENS) as theirs:
                loads = await _loads(bench, [ours, theirs], concurrency)
            _load_rows(bench, f"{concurrency} concurrent", loads, (None, None))


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
            loads = await _loads(bench, servers, 8, each=1)  # the server's default may fall to 5 tokens/s
    rates = [[None if load is None else load.tokens_per_s for load in turn] for turn in loads]
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


async def styles(bench: Bench) -> None:
    """Sampled and JSON-schema output, as a share of greedy's rate, beside the server's own share."""
    styles: tuple[Style, ...] = ("greedy", "sampled", "json")
    found: dict[Style, list[list[Load | None]]] = {}
    async with bench.ours(one_core(bench)) as ours, bench.yardstick(8, CONTEXT_TOKENS) as theirs:
        for style in styles:
            found[style] = await _loads(bench, [ours, theirs], 8, style)
    for style in styles:
        rates = [_pair(turn, lambda load: load.tokens_per_s) for turn in found[style]]
        row = compare("output rate", f"8 concurrent, {style}", "tok/s", rates, against=bench.yardstick_name)
        bench.report.rows.append(row)
    for style in styles[1:]:
        shares = [_shares(turn, greedy) for turn, greedy in zip(found[style], found["greedy"], strict=True)]
        row = compare(f"{style} / greedy rate", "8 concurrent", "x", shares, against=bench.yardstick_name)
        bench.report.rows.append(row)


async def _loads(
    bench: Bench, servers: list[Server | None], concurrency: int, style: Style = "greedy", each: int = 3
) -> list[list[Load | None]]:
    """A closed loop on each server, round by round; within a round all get the same prompts, never used again."""
    each = 1 if bench.quick else 5 if concurrency == 1 else each
    tokens = 48 if bench.quick else OUTPUT_TOKENS
    asks = [bench.prompts.asks(concurrency * each, tokens, style=style) for _ in range(bench.rounds)]

    async def measure(server: Server, turn: int) -> Load:
        return await closed_loop(server, asks[turn], concurrency)

    return await bench.alternate(servers, measure)


def _load_rows(bench: Bench, case: str, loads: list[list[Load | None]], bars: tuple[str | None, str | None]) -> None:
    figures: list[tuple[str, str, Callable[[Load], float], str | None]] = [
        ("output rate", "tok/s", lambda load: load.tokens_per_s, bars[0]),
        ("TTFT p50", "ms", lambda load: load.ttft_p50_ms, bars[1]),
        ("inter-token p99", "ms", lambda load: load.gap_p99_ms, None),
    ]
    for metric, unit, figure, bar in figures:
        pairs = [_pair(turn, figure) for turn in loads]
        bench.report.rows.append(compare(metric, case, unit, pairs, against=bench.yardstick_name, bar=bar))


def _pair(turn: list[Load | None], figure: Callable[[Load], float]) -> tuple[float | None, float | None]:
    ours, theirs = (None if load is None else figure(load) for load in turn)
    return ours, theirs


def _shares(turn: list[Load | None], greedy: list[Load | None]) -> tuple[float | None, float | None]:
    """Each side's rate as a share of its own greedy rate in the same round."""
    pairs = zip(turn, greedy, strict=True)
    ours, theirs = (one.tokens_per_s / base.tokens_per_s if one and base else None for one, base in pairs)
    return ours, theirs


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
    "styles": styles,
    "persona": engine_latency.persona,
    "long-prompt": engine_latency.long_prompt,
    "critical": engine_latency.critical,
    "memory": engine_model.second_worker,
    "derived": engine_model.derived,
    "gpu": on_gpu,
}
ON_GPU = ("gpu",)  # what is run when no case is named
ON_CPU = tuple(name for name in CASES if name not in ON_GPU)
