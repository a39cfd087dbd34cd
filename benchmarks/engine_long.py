"""Engine benchmark · bench process · a long prompt alone: how fast it is read, and how fast it goes on behind it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.engine import Bench, pair
from benchmarks.load import Ask, Sample, Server
from benchmarks.ours import Layout
from benchmarks.report import compare

PROMPT_TOKENS = 4000
OUTPUT_TOKENS = 128
CONTEXT_TOKENS = 4608


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
