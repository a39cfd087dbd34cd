"""Engine benchmark · bench process · the same loop through our daemon on each of its engines, beside llama-server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec

from benchmarks.engine import Bench
from benchmarks.engine_loops import CONTEXT_TOKENS, load_rows, loads
from benchmarks.load import Server
from benchmarks.ours import Layout
from benchmarks.report import absolute

ENGINES = ("llamacpp", "mistralrs")
STREAMS = (1, 4)


async def engines(bench: Bench) -> None:
    """Output rate, TTFT and gaps of one worker on all cores, with each engine that is installed."""
    installed = [name for name in ENGINES if name != "mistralrs" or find_spec(name) is not None]
    async with _all(bench, installed) as servers:
        for concurrency in STREAMS:
            found = await loads(bench, servers, concurrency)
            for place, engine in enumerate(installed):
                pairs = [[turn[place], turn[-1]] for turn in found]
                load_rows(bench, f"{concurrency} concurrent, engine {engine}", pairs, (None, None))
    for engine in ENGINES:
        if engine not in installed:
            bench.report.rows.append(absolute("output rate", f"engine {engine}: not installed", "tok/s", []))


@asynccontextmanager
async def _all(bench: Bench, installed: list[str]) -> AsyncIterator[list[Server | None]]:
    """A daemon an engine, and llama-server as the last; those that are not measured have nothing to do."""
    if not installed:
        async with bench.yardstick(max(STREAMS), CONTEXT_TOKENS) as theirs:
            yield [theirs]
        return
    layout = Layout(workers=1, slots=max(STREAMS), context_tokens=CONTEXT_TOKENS, engine=installed[0])
    async with bench.ours(layout) as ours, _all(bench, installed[1:]) as others:
        yield [ours, *others]
