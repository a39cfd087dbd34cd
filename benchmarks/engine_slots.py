"""Engine benchmark · bench process · the memory of a slot, beside llama-server and what footprint.py computes."""

from __future__ import annotations

from benchmarks import machine
from benchmarks.engine import Bench
from benchmarks.load import closed_loop
from benchmarks.machine import Memory
from benchmarks.ours import Layout
from benchmarks.report import compare
from metamusesd.engines.base import EngineSpec
from metamusesd.engines.llamacpp.footprint import PROCESS_BYTES, need_of
from metamusesd.gguf import read_header

COUNTS = (1, 8, 16)
CONTEXT_TOKENS = 1024
MIB, KIB = 2**20, 2**10
COMPUTED = "footprint.py"

Pairs = list[tuple[float | None, float | None]]


async def slots(bench: Bench) -> None:
    """The own memory of the process that holds the model, with 1, 8 and 16 slots that have all worked."""
    found: dict[int, Pairs] = {count: [] for count in COUNTS}
    usual: list[float | None] = []
    for _ in range(bench.rounds):
        for count in COUNTS:
            layout = _layout(count, count * CONTEXT_TOKENS)
            found[count].append((await _ours(bench, layout), await _theirs(bench, count)))
        usual.append(await _ours(bench, _layout(COUNTS[-1], 0)))
    for count in COUNTS:
        _rows(bench, _layout(count, count * CONTEXT_TOKENS), found[count])
    _slope_rows(bench, found[COUNTS[0]], found[COUNTS[-1]])
    case = f"{COUNTS[-1]} slots of {CONTEXT_TOKENS}, as many cells as are made by default"
    pairs = [(mine, expected(bench, _layout(COUNTS[-1], 0)).own / MIB) for mine in usual]
    bench.report.rows.append(compare("own memory", case, "MiB", pairs, against=COMPUTED))


def _layout(count: int, cells: int) -> Layout:
    return Layout(workers=1, slots=count, context_tokens=CONTEXT_TOKENS, cells=cells)


def expected(bench: Bench, layout: Layout) -> Memory:
    """What `metamusesd check` would count for such a worker."""
    spec = EngineSpec("llamacpp", "bench", slots=layout.slots, context=layout.context_tokens, kv_cells=layout.cells)
    need = need_of(spec, read_header(bench.model))
    return Memory(own=need.bytes_ + PROCESS_BYTES, mapped=bench.model.stat().st_size)


async def _ours(bench: Bench, layout: Layout) -> float | None:
    async with bench.ours(layout) as ours:
        if ours is None:
            return None
        await closed_loop(ours, bench.prompts.asks(layout.slots, 16), layout.slots)
        return machine.memory(*ours.worker_pids()).own / MIB


async def _theirs(bench: Bench, count: int) -> float | None:
    async with bench.yardstick(count, CONTEXT_TOKENS) as theirs:
        if theirs is None:
            return None
        await closed_loop(theirs, bench.prompts.asks(count, 16), count)
        return machine.memory(theirs.pid).own / MIB


def _rows(bench: Bench, layout: Layout, pairs: Pairs) -> None:
    case = f"{layout.slots} slots of {CONTEXT_TOKENS}"
    bench.report.rows.append(compare("own memory", case, "MiB", pairs, against=bench.yardstick_name))
    computed = [(mine, expected(bench, layout).own / MIB) for mine, _ in pairs]
    bench.report.rows.append(compare("own memory", case, "MiB", computed, against=COMPUTED))


def _slope_rows(bench: Bench, few: Pairs, many: Pairs) -> None:
    """What one slot more costs, and one cell of it."""
    more = COUNTS[-1] - COUNTS[0]
    slopes = [slope(before, after, more) for before, after in zip(few, many, strict=True)]
    case = f"from {COUNTS[0]} to {COUNTS[-1]} slots of {CONTEXT_TOKENS}"
    bench.report.rows.append(compare("own memory a slot", case, "MiB", slopes, against=bench.yardstick_name))
    each = need_of(EngineSpec("llamacpp", "bench", context=CONTEXT_TOKENS), read_header(bench.model)).cell_bytes
    cells = [(mine and mine * MIB / CONTEXT_TOKENS / KIB, each / KIB) for mine, _ in slopes]
    bench.report.rows.append(compare("own memory a cell", case, "KiB", cells, against=COMPUTED))


def slope(
    few: tuple[float | None, float | None], many: tuple[float | None, float | None], more: int
) -> tuple[float | None, float | None]:
    """The growth of each side divided by `more`; of a side that did not run, none."""
    ours, theirs = (
        None if before is None or after is None else (after - before) / more
        for before, after in zip(few, many, strict=True)
    )
    return ours, theirs
