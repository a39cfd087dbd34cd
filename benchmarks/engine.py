"""Engine benchmark · bench process · ours (producer → Redis → dispatcher → worker → stream) beside llama-server.

This file holds the run: which cases, which sides, how rounds alternate. What is measured stands in engine_cases.py.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from benchmarks import llama_server, machine
from benchmarks.load import Prompts, Server, closed_loop
from benchmarks.ours import Layout, OurServer, run_ours
from benchmarks.report import Report
from benchmarks.yardstick import LlamaServer, run_llama_server

DEMO_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 20_250
Figure = TypeVar("Figure")


@dataclass
class Bench:
    """One run: the settings, the source of prompts, the report that cases add their rows to."""

    model: Path
    cores: list[int]
    rounds: int
    quick: bool
    only: str | None
    build: llama_server.Build | None
    report: Report
    gpus: tuple[str, ...] = ()  # both sides compute on these; none: on the cores
    prompts: Prompts = field(default_factory=lambda: Prompts(SEED))

    @property
    def yardstick_name(self) -> str:
        """How the other side is called in rows."""
        return self.build.name if self.build else "llama-server"

    @asynccontextmanager
    async def ours(
        self, layout: Layout, model: Path | None = None, cores: list[int] | None = None, *, warm: bool = True
    ) -> AsyncIterator[OurServer | None]:
        """Our daemon, warmed up, on all cores of the run or on some; None when only the other side is asked for."""
        if self.only == "yardstick":
            yield None
            return
        async with run_ours(model or self.model, cores or self.cores, layout, self.gpus) as server:
            if warm:
                await self._warm_up(server, layout.workers * layout.slots)
            yield server

    @asynccontextmanager
    async def yardstick(
        self,
        slots: int,
        context_tokens: int,
        *,
        threads: int | None = None,
        environment: dict[str, str] | None = None,
        label: str = "",
        warm: bool = True,
    ) -> AsyncIterator[LlamaServer | None]:
        """llama-server, warmed up; `threads` 0 leaves it at its own default, None gives it as many as cores."""
        if self.only == "ours" or self.build is None:
            yield None
            return
        count = len(self.cores) if threads is None else threads or None
        async with run_llama_server(
            self.build,
            self.model,
            self.cores,
            slots=slots,
            context_tokens=context_tokens,
            threads=count,
            environment=environment,
            label=label,
            gpus=self.gpus,
        ) as server:
            if warm:
                await self._warm_up(server, slots)
            yield server

    async def alternate(
        self, sides: list[Server | None], measure: Callable[[Server, int], Awaitable[Figure]]
    ) -> list[list[Figure | None]]:
        """`measure(side, round)` for every side, `rounds` times; the order turns round by round. None: no such side."""
        rounds: list[list[Figure | None]] = []
        for turn in range(self.rounds):
            figures: list[Figure | None] = [None] * len(sides)
            for place in range(len(sides)) if turn % 2 == 0 else reversed(range(len(sides))):
                side = sides[place]
                if side is not None:
                    started = time.monotonic()
                    figures[place] = await measure(side, turn)
                    print(f"  round {turn + 1}: {side.name}, {time.monotonic() - started:.1f} s", flush=True)
            rounds.append(figures)
        return rounds

    async def _warm_up(self, server: Server, requests: int) -> None:
        await closed_loop(server, self.prompts.asks(requests, 8), requests)


def side(rounds: list[list[Figure | None]], place: int) -> list[Figure]:
    """The figures of one side, without the rounds in which it did not run."""
    return [figure for turn in rounds if (figure := turn[place]) is not None]


def pair(
    turn: Sequence[Figure | None],
    ours: Callable[[Figure], float | None],
    theirs: Callable[[Figure], float | None] | None = None,
) -> tuple[float | None, float | None]:
    """One figure of (ours, yardstick); `theirs` says where it is another one on the other side."""
    mine, other = turn
    return None if mine is None else ours(mine), None if other is None else (theirs or ours)(other)


def run(options: argparse.Namespace) -> Report:
    """The whole benchmark, or the cases named by --case."""
    from benchmarks.engine_cases import CASES, ON_CPU, ON_GPU

    report = Report(benchmark="engine", command=options.command)
    cores = _cores(options.cores)
    bench = Bench(
        model=_model(options.model),
        cores=cores,
        rounds=options.rounds or (1 if options.quick else 3),
        quick=options.quick,
        only=options.only,
        build=None if options.only == "ours" else llama_server.find() or llama_server.stand_in(),
        report=report,
        gpus=tuple(options.gpus.split(",")) if options.gpus else (),
    )
    unknown = set(options.case or ()) - set(CASES)
    if unknown:
        raise SystemExit(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    _describe(bench)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        for name in options.case or (ON_GPU if bench.gpus else ON_CPU):
            print(f"case {name} …", flush=True)
            runner.run(_case(CASES[name], bench))
            if options.json:  # after every case, so that a run that is cut short has not been in vain
                report.write(options.json)
    return report


async def _case(case: Callable[[Bench], Awaitable[None]], bench: Bench) -> None:
    await case(bench)


def _describe(bench: Bench) -> None:
    notes = bench.report.notes
    where = f"GPU {' '.join(bench.gpus)}, " if bench.gpus else ""
    if bench.gpus:
        notes.append(f"GPU: {machine.gpus(bench.gpus)}")
    notes.append(f"model {bench.model.name}, {where}cores {bench.cores}, {bench.rounds} alternating rounds, medians")
    if bench.build is None:
        if bench.only != "ours":
            notes.append("no llama-server: run `python -m benchmarks build-llama-server`; yardstick columns stay empty")
        return
    notes.append(f"yardstick: {bench.build.name} {bench.build.version}; {bench.build.system_info}")
    notes.append(f"ours: llama-cpp-python; {llama_server.python_system_info()}")


def _cores(text: str | None) -> list[int]:
    return sorted(int(word) for word in text.split(",")) if text else sorted(os.sched_getaffinity(0))


def _model(given: Path | None) -> Path:
    places = [given] if given else [Path(os.environ.get("MODELS_DIR", "models")) / DEMO_MODEL]
    if not places[0].is_file():
        raise SystemExit(f"{places[0]} does not exist; run `metamusesd models fetch`, set MODELS_DIR or give --model")
    return places[0].absolute()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
