"""Engine benchmark · bench process · a long prompt alone: how fast it is read, how fast it goes on behind it, and who
comes while it is read."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass

from benchmarks.engine import Bench, pair, side
from benchmarks.load import Ask, Sample, Server, streaming, ttft_s
from benchmarks.ours import Layout
from benchmarks.report import compare

PROMPT_TOKENS = 4000
OUTPUT_TOKENS = 128
CONTEXT_TOKENS = 4608
SHORT_TOKENS = 60
COMES_S = (0.4, 0.7, 1.0)  # after the long prompt, which takes several seconds


@dataclass(frozen=True)
class Rates:
    """Tokens a second."""

    prompt: float
    output: float


async def long(bench: Bench) -> None:
    """One request with a 4 000-token prompt at a time, on one worker with all cores."""
    tokens = PROMPT_TOKENS // 8 if bench.quick else PROMPT_TOKENS
    asks = [Ask(bench.prompts.text(tokens), OUTPUT_TOKENS) for _ in range(bench.rounds)]

    async def measure(server: Server, turn: int) -> Rates:
        sample = Sample()
        await server.ask(asks[turn], sample)
        return rates(sample)

    layout = Layout(workers=1, slots=1, context_tokens=CONTEXT_TOKENS)
    async with bench.ours(layout) as ours, bench.yardstick(1, CONTEXT_TOKENS) as theirs:
        rounds = await bench.alternate([ours, theirs], measure)
    case, against = f"{tokens}-token prompt, alone", bench.yardstick_name
    prompts = [pair(turn, lambda one: one.prompt) for turn in rounds]
    bench.report.rows.append(compare("prompt rate", case, "tok/s", prompts, against=against))
    outputs = [pair(turn, lambda one: one.output) for turn in rounds]
    bench.report.rows.append(compare("output rate behind it", case, "tok/s", outputs, against=against))


def rates(sample: Sample) -> Rates:
    """Of one request: what was computed of its prompt by the first token's time, and the tokens from then on."""
    span_s = sample.arrivals_s[-1] - sample.arrivals_s[0]
    computed = sample.prompt_tokens - sample.cached_tokens
    return Rates(computed / sample.ttft_s, (sample.tokens - 1) / span_s)


async def urgent(bench: Bench) -> None:
    """TTFT of a critical request that comes while a low one's long prompt is read, against an idle server's."""
    tokens = PROMPT_TOKENS // 4 if bench.quick else PROMPT_TOKENS

    async def measure(server: Server, turn: int) -> tuple[float, float]:
        idle_s = await ttft_s(server, _short(bench))
        amid_s = [await _amid_s(bench, server, tokens, comes_s) for comes_s in COMES_S]
        return 1000 * statistics.median(amid_s), 1000 * idle_s

    layout = Layout(workers=1, slots=2, context_tokens=CONTEXT_TOKENS)
    async with bench.ours(layout) as ours, bench.yardstick(2, CONTEXT_TOKENS) as theirs:
        rounds = await bench.alternate([ours, theirs], measure)
    for place, name in enumerate(("metamusesd", bench.yardstick_name)):
        if pairs := side(rounds, place):
            case = f"critical while a low {tokens}-token prompt is read, {name}"
            bench.report.rows.append(compare("TTFT", case, "ms", pairs, against=f"{name}, idle"))


async def _amid_s(bench: Bench, server: Server, tokens: int, comes_s: float) -> float:
    """The long prompt begins, the short one comes so much later; the long one is cancelled then."""
    async with streaming(server, [Ask(bench.prompts.text(tokens), 4, priority="low")]) as (long,):
        await asyncio.sleep(comes_s)
        if long.arrivals_s:
            raise RuntimeError(f"{server.name} has read {tokens} tokens in {comes_s} s: nothing to come between")
        return await ttft_s(server, _short(bench))


def _short(bench: Bench) -> Ask:
    return Ask(bench.prompts.text(SHORT_TOKENS), 4, priority="critical")
