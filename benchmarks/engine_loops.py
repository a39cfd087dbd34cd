"""Engine benchmark · bench process · closed loops on the sides of a comparison, and the rows that come of them."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.engine import Bench, pair
from benchmarks.load import Load, Server, closed_loop
from benchmarks.ours import Layout
from benchmarks.report import compare

CONTEXT_TOKENS = 512  # of a slot, on both sides: 160 prompt tokens, the template, the answer
OUTPUT_TOKENS = 96

Bars = tuple[str | None, str | None]  # of the rate, of the TTFT


def one_core(bench: Bench) -> Layout:
    """A worker on each core; slots for at least 16 streams."""
    workers = len(bench.cores)
    return Layout(workers=workers, slots=max(2, 16 // workers), context_tokens=CONTEXT_TOKENS)


def all_cores(bench: Bench) -> Layout:
    """One worker on all cores."""
    return Layout(workers=1, slots=16, context_tokens=CONTEXT_TOKENS)


async def loads(bench: Bench, servers: list[Server | None], concurrency: int, each: int = 3) -> list[list[Load | None]]:
    """A closed loop on each server, round by round; within a round all get the same prompts, never used again."""
    each = 1 if bench.quick else 5 if concurrency == 1 else each
    asks = [bench.prompts.asks(concurrency * each, output_tokens(bench)) for _ in range(bench.rounds)]

    async def measure(server: Server, turn: int) -> Load:
        return await closed_loop(server, asks[turn], concurrency)

    return await bench.alternate(servers, measure)


def output_tokens(bench: Bench) -> int:
    """Of each answer."""
    return OUTPUT_TOKENS // 2 if bench.quick else OUTPUT_TOKENS


def load_rows(bench: Bench, case: str, found: list[list[Load | None]], bars: Bars, against: str | None = None) -> None:
    """The three rows of (ours, yardstick) loads."""
    figures: list[tuple[str, str, Callable[[Load], float], str | None]] = [
        ("output rate", "tok/s", lambda load: load.tokens_per_s, bars[0]),
        ("TTFT p50", "ms", lambda load: load.ttft_p50_ms, bars[1]),
        ("inter-token p99", "ms", lambda load: load.gap_p99_ms, None),
    ]
    for metric, unit, figure, bar in figures:
        pairs = [pair(turn, figure) for turn in found]
        row = compare(metric, case, unit, pairs, against=against or bench.yardstick_name, bar=bar)
        bench.report.rows.append(row)
