"""Engine benchmark · bench process · what each feature of a request costs, beside plain greedy output of the same side.

By rates, and by processor time: that one hardly sees what else the machine does, as long as a side does not wait in a
loop for a thread of its own that does not run. So the run with `--cores N`, one core, is the one to believe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.engine import Bench, pair
from benchmarks.engine_loops import CONTEXT_TOKENS, one_core, output_tokens
from benchmarks.load import Load, Server, closed_loop
from benchmarks.machine import descendants
from benchmarks.operate.watch import cpu_s
from benchmarks.report import compare
from benchmarks.styles import STYLES

CONCURRENCY = 8
PLAIN = "greedy"


@dataclass(frozen=True)
class Cost:
    """One loop of one style."""

    load: Load
    cpu_s: float  # of all processes of the side

    @property
    def token_ms(self) -> float:
        """Processor time for each output token, its part of the prompts included."""
        return 1000 * self.cpu_s / sum(sample.tokens for sample in self.load.samples)

    @property
    def rate(self) -> float:
        return self.load.tokens_per_s


Turn = dict[str, list[Cost | None]]  # by style: ours, the yardstick's


async def features(bench: Bench) -> None:
    """The output rate of every style. All of them take turns within a round, so that a drifting machine hurts all."""
    each = 1 if bench.quick else 2
    asks = {
        style: [bench.prompts.asks(CONCURRENCY * each, output_tokens(bench), style=style) for _ in range(bench.rounds)]
        for style in STYLES
    }

    async def measure(server: Server, turn: int) -> dict[str, Cost]:
        names = list(STYLES) if turn % 2 == 0 else list(reversed(STYLES))
        found = {}
        for name in names:
            before_s = _spent_s(server)
            load = await closed_loop(server, asks[name][turn], CONCURRENCY)
            found[name] = Cost(load, _spent_s(server) - before_s)
        return found

    async with bench.ours(one_core(bench)) as ours, bench.yardstick(CONCURRENCY, CONTEXT_TOKENS) as theirs:
        rounds = await bench.alternate([ours, theirs], measure)
    rows(
        bench,
        [{style: [None if side is None else side[style] for side in turn] for style in STYLES} for turn in rounds],
    )


def _spent_s(server: Server) -> float:
    return sum(cpu_s(pid) for pid in (server.pid, *descendants(server.pid)))


def rows(bench: Bench, rounds: list[Turn]) -> None:
    """A rate and a cost a style, then both against the plain ones."""
    figures: list[tuple[str, str, Callable[[Cost], float]]] = [
        ("output rate", "tok/s", lambda cost: cost.rate),
        ("processor time a token", "ms", lambda cost: cost.token_ms),
    ]
    case = f"{CONCURRENCY} concurrent, {{}}"
    for metric, unit, figure in figures:
        for style in STYLES:
            pairs = [pair(turn[style], figure) for turn in rounds]
            row = compare(metric, case.format(style), unit, pairs, against=bench.yardstick_name)
            bench.report.rows.append(row)
    for metric, _, figure in figures:
        for style in STYLES:
            if style != PLAIN:
                found = [shares(turn[style], turn[PLAIN], figure) for turn in rounds]
                label = case.format(f"{style} / {PLAIN}")
                bench.report.rows.append(compare(metric, label, "x", found, against=bench.yardstick_name))


def shares(
    turn: list[Cost | None], plain: list[Cost | None], figure: Callable[[Cost], float]
) -> tuple[float | None, float | None]:
    """Each side's figure as a multiple of its own plain one in the same round."""
    (ours, theirs), (own, their_own) = pair(turn, figure), pair(plain, figure)
    return ours and own and ours / own, theirs and their_own and theirs / their_own
