"""Engine benchmark · bench process · what each feature of a request costs: the share of a side's own plain rate."""

from __future__ import annotations

from benchmarks.engine import Bench, pair
from benchmarks.engine_loops import CONTEXT_TOKENS, one_core, output_tokens, shares
from benchmarks.load import Load, Server, closed_loop
from benchmarks.report import compare
from benchmarks.styles import STYLES

CONCURRENCY = 8
PLAIN = "greedy"


async def features(bench: Bench) -> None:
    """The output rate of every style. All of them take turns within a round, so that a drifting machine hurts all."""
    each = 1 if bench.quick else 3
    asks = {
        style: [bench.prompts.asks(CONCURRENCY * each, output_tokens(bench), style=style) for _ in range(bench.rounds)]
        for style in STYLES
    }

    async def measure(server: Server, turn: int) -> dict[str, Load]:
        names = list(STYLES) if turn % 2 == 0 else list(reversed(STYLES))
        return {name: await closed_loop(server, asks[name][turn], CONCURRENCY) for name in names}

    async with bench.ours(one_core(bench)) as ours, bench.yardstick(CONCURRENCY, CONTEXT_TOKENS) as theirs:
        rounds = await bench.alternate([ours, theirs], measure)
    rows(bench, [{style: _of(style, turn) for style in STYLES} for turn in rounds])


def _of(style: str, turn: list[dict[str, Load] | None]) -> list[Load | None]:
    return [None if side is None else side[style] for side in turn]


def rows(bench: Bench, rounds: list[dict[str, list[Load | None]]]) -> None:
    """A rate a style, then the shares of the plain rate."""
    case = f"{CONCURRENCY} concurrent"
    for style in STYLES:
        rates = [pair(turn[style], lambda load: load.tokens_per_s) for turn in rounds]
        bench.report.rows.append(
            compare("output rate", f"{case}, {style}", "tok/s", rates, against=bench.yardstick_name)
        )
    for style in STYLES:
        if style != PLAIN:
            found = [shares(turn[style], turn[PLAIN]) for turn in rounds]
            row = compare(f"{style} / {PLAIN} rate", case, "x", found, against=bench.yardstick_name)
            bench.report.rows.append(row)
