"""Engine benchmark · bench process · cases about waiting: known persona, long prompt, critical job."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.engine import Bench, side
from benchmarks.load import Ask, Server, percentile, streaming, ttft_s, until_tokens
from benchmarks.ours import Layout
from benchmarks.report import absolute, compare

PERSONA_TOKENS = 1000
LONG_TOKENS = 1500
STREAMS = 8
STREAM_TOKENS = 1400  # more than a stream can get until the long prompt has its first token
LOW_TOKENS = 600  # of each low job under a critical one
CONTEXT_TOKENS = 2048
SETTLED_TOKENS = 24  # of each stream, before it counts as running steadily


async def persona(bench: Bench) -> None:
    """TTFT with a 1 000-token persona that was seen before, against the first time; each round has a new persona."""
    layout = Layout(workers=len(bench.cores), slots=4, context_tokens=CONTEXT_TOKENS)

    async def measure(server: Server, turn: int) -> tuple[float, float]:
        system = bench.prompts.text(PERSONA_TOKENS)
        first = await ttft_s(server, Ask(bench.prompts.text(30), 8, system=system))
        again = [await ttft_s(server, Ask(bench.prompts.text(30), 8, system=system)) for _ in range(3)]
        return 1000 * statistics.median(again), 1000 * first

    async with bench.ours(layout) as ours, bench.yardstick(4, CONTEXT_TOKENS) as theirs:
        rounds = await bench.alternate([ours, theirs], measure)
    for place, name, bar in ((0, "metamusesd", "<= 0.15"), (1, bench.yardstick_name, None)):
        pairs = side(rounds, place)
        case, against = f"{PERSONA_TOKENS}-token persona seen before, {name}", f"{name}, first time"
        if pairs:
            bench.report.rows.append(compare("TTFT", case, "ms", pairs, against=against, bar=bar))


@dataclass(frozen=True)
class Intrusion:
    """What a long prompt did to the streams around it, and they to it."""

    calm_p99_ms: float  # between tokens of the streams before it came
    during_p99_ms: float  # between its submit and its first token
    alone_ttft_ms: float  # of prompts as long on the idle server, the mean of one before and one after
    ttft_ms: float


async def long_prompt(bench: Bench) -> None:
    """A 1 500-token prompt arrives while 8 streams run."""
    slots = -(-(STREAMS + 2) // len(bench.cores))
    cells = slots * CONTEXT_TOKENS  # room for all streams at their full length
    layout = Layout(workers=len(bench.cores), slots=slots, context_tokens=CONTEXT_TOKENS, cells=cells)

    async def measure(server: Server, turn: int) -> Intrusion:
        return await _intrude(bench, server)

    async with bench.ours(layout) as ours, bench.yardstick(STREAMS + 1, CONTEXT_TOKENS) as theirs:
        rounds = await bench.alternate([ours, theirs], measure)
    neighbours = 1 + STREAMS / layout.workers
    sides = ((0, "metamusesd", neighbours, ("<= 2.5", "<= 2.0")), (1, bench.yardstick_name, STREAMS + 1, (None, None)))
    for place, name, share, bars in sides:
        found = side(rounds, place)
        if found:
            _intrusion_rows(bench, name, share, found, bars)


def _intrusion_rows(
    bench: Bench, name: str, share: float, found: Sequence[Intrusion], bars: tuple[str | None, str | None]
) -> None:
    """Two rows a side. A prompt's fair share: the time it takes alone where it runs, times the streams there."""
    case = f"{LONG_TOKENS}-token prompt among {STREAMS} streams, {name}"
    gaps = [(one.during_p99_ms, one.calm_p99_ms) for one in found]
    bench.report.rows.append(
        compare("inter-token p99", case, "ms", gaps, against=f"{name}, before it came", bar=bars[0])
    )
    waits = [(one.ttft_ms, one.alone_ttft_ms * share) for one in found]
    against = f"{name}, fair share: alone x {share:g}"
    bench.report.rows.append(compare("TTFT of the prompt", case, "ms", waits, against=against, bar=bars[1]))
    alone = [one.alone_ttft_ms for one in found]
    bench.report.rows.append(absolute("TTFT of the prompt", f"{LONG_TOKENS} tokens alone, {name}", "ms", alone))


async def _intrude(bench: Bench, server: Server) -> Intrusion:
    alone_s = await ttft_s(server, Ask(bench.prompts.text(LONG_TOKENS), 4)) / 2
    asks = bench.prompts.asks(STREAMS, STREAM_TOKENS)
    async with streaming(server, asks) as streams:
        await until_tokens(streams, SETTLED_TOKENS // 3)
        calm_from_s = time.perf_counter()
        await until_tokens(streams, SETTLED_TOKENS // 3 + SETTLED_TOKENS)
        came_s = time.perf_counter()
        waited_s = await ttft_s(server, Ask(bench.prompts.text(LONG_TOKENS), 4))
        first_s = came_s + waited_s
    alone_s += await ttft_s(server, Ask(bench.prompts.text(LONG_TOKENS), 4)) / 2
    calm = [gap for stream in streams for gap in stream.gaps_s(calm_from_s, came_s)]
    during = [gap for stream in streams for gap in stream.gaps_s(came_s, first_s)]
    return Intrusion(1000 * percentile(calm, 0.99), 1000 * percentile(during, 0.99), 1000 * alone_s, 1000 * waited_s)


async def critical(bench: Bench) -> None:
    """TTFT of critical jobs while every slot generates for low jobs and more of them wait, against an idle daemon's."""
    layout = Layout(workers=len(bench.cores), slots=4, context_tokens=CONTEXT_TOKENS)
    slots = layout.workers * layout.slots
    count = 3 if bench.quick else 5

    async def ttft_ms(server: Server) -> float:
        asks = [Ask(bench.prompts.text(60), 4, priority="critical") for _ in range(count)]
        return 1000 * statistics.median([await ttft_s(server, ask) for ask in asks])

    async def measure(server: Server, turn: int) -> tuple[float, float]:
        idle_ms = await ttft_ms(server)
        low = bench.prompts.asks(slots + STREAMS, LOW_TOKENS, priority="low")
        async with streaming(server, low) as streams:
            await until_tokens(streams, 4, count=slots)
            return await ttft_ms(server), idle_ms

    async with bench.ours(layout) as ours:
        rounds = await bench.alternate([ours], measure)
    pairs = side(rounds, 0)
    if pairs:
        case = f"critical while {slots} low ones fill all slots"
        bench.report.rows.append(compare("TTFT", case, "ms", pairs, against="metamusesd, idle", bar="<= 1.5"))
