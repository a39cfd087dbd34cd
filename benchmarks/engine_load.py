"""Engine benchmark · bench process · from the start of a process to its first token, and the memory it then holds."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import machine, page_cache
from benchmarks.engine import Bench, pair
from benchmarks.load import Ask, ttft_s
from benchmarks.machine import Memory
from benchmarks.ours import Layout, OurServer
from benchmarks.report import absolute, compare
from benchmarks.yardstick import LlamaServer

SLOTS = 8
CONTEXT_TOKENS = 1024
DROPPED = 0.01  # a file of which more than this share stays in memory is not cold
DEATH_LIMIT_S = 60.0
LOOK_S = 0.02
MIB = 2**20


@dataclass(frozen=True)
class Start:
    """One start of one side. `stayed`: the share of the model file that was in memory before."""

    stayed: float
    ready_s: float
    first_token_s: float
    model: Memory  # of the process that holds the model
    whole: Memory  # of all its processes
    again_s: float | None = None  # from the worker's death until the next one is ready


Turns = list[list[Start | None]]  # a round: ours, the yardstick's


async def load(bench: Bench) -> None:
    """Start to ready and to a first token, the model file in the page cache or not; a killed worker's return."""
    cold: Turns = []
    warm: Turns = []
    for turn in range(bench.rounds):
        for found, is_warm in ((cold, False), (warm, True)):
            sides: list[Start | None] = [None, None]
            for place in (0, 1) if turn % 2 == 0 else (1, 0):
                sides[place] = await _started(bench, place, is_warm)
            found.append(sides)
    _time_rows(bench, "cold", cold)
    _time_rows(bench, "warm", warm)
    back = [pair(turn, lambda one: one.again_s, lambda one: one.ready_s) for turn in warm]
    against = f"{bench.yardstick_name}, its start"
    bench.report.rows.append(compare("kill -9 to ready", "model file warm", "s", back, against=against))
    _memory_rows(bench, warm)
    _say_what_stayed(bench, cold)


async def _started(bench: Bench, place: int, is_warm: bool) -> Start | None:
    """Start one side, measure, end it. None: that side does not run."""
    if is_warm:
        page_cache.bring(bench.model)
        stayed = 1.0
    else:
        stayed = page_cache.drop(bench.model)
    begun_s = time.perf_counter()
    if place == 0:
        layout = Layout(workers=1, slots=SLOTS, context_tokens=CONTEXT_TOKENS, cells=SLOTS * CONTEXT_TOKENS)
        async with bench.ours(layout, warm=False) as ours:
            return None if ours is None else await _seen(bench, ours, begun_s, stayed)
    async with bench.yardstick(SLOTS, CONTEXT_TOKENS, warm=False) as theirs:
        return None if theirs is None else await _seen(bench, theirs, begun_s, stayed)


async def _seen(bench: Bench, server: OurServer | LlamaServer, begun_s: float, stayed: float) -> Start:
    ready_s = time.perf_counter() - begun_s
    asked_s = time.perf_counter()
    first_s = asked_s - begun_s + await ttft_s(server, Ask(bench.prompts.text(60), 8))
    whole = machine.memory(server.pid, *machine.descendants(server.pid))
    if isinstance(server, LlamaServer):
        return Start(stayed, ready_s, first_s, whole, whole)
    model = machine.memory(*server.worker_pids())
    return Start(stayed, ready_s, first_s, model, whole, await _back_s(server))


async def _back_s(server: OurServer) -> float:
    """Kill the worker; the time until another one is ready."""
    (killed,) = server.worker_pids()
    os.kill(killed, signal.SIGKILL)
    begun_s = time.perf_counter()
    async with asyncio.timeout(DEATH_LIMIT_S):
        while not (found := server.worker_pids()) or found == [killed]:
            await asyncio.sleep(LOOK_S)
    await server.until_ready()
    return time.perf_counter() - begun_s


def _time_rows(bench: Bench, name: str, found: Turns) -> None:
    figures: list[tuple[str, Callable[[Start], float]]] = [
        ("start to ready", lambda one: one.ready_s),
        ("start to first token", lambda one: one.first_token_s),
    ]
    for metric, figure in figures:
        pairs = [pair(turn, figure) for turn in found]
        bench.report.rows.append(compare(metric, f"model file {name}", "s", pairs, against=bench.yardstick_name))


def _memory_rows(bench: Bench, found: Turns) -> None:
    figures: list[tuple[str, Callable[[Start], float]]] = [
        ("own memory, process with the model", lambda one: one.model.own / MIB),
        ("own memory, all processes", lambda one: one.whole.own / MIB),
        ("mapped files, process with the model", lambda one: one.model.mapped / MIB),
    ]
    case = f"{SLOTS} slots of {CONTEXT_TOKENS}, one request served"
    for metric, figure in figures:
        pairs = [pair(turn, figure) for turn in found]
        bench.report.rows.append(compare(metric, case, "MiB", pairs, against=bench.yardstick_name))


def _say_what_stayed(bench: Bench, found: Turns) -> None:
    stayed = [start.stayed for turn in found for start in turn if start is not None]
    if not stayed:
        return
    bench.report.rows.append(absolute("model file in memory before a cold start", "", "share", stayed))
    if statistics.median(stayed) > DROPPED:
        bench.report.notes.append("load: the model file could not be dropped, somebody else has it mapped; not cold")
    else:
        bench.report.notes.append("load, cold: the model file was dropped, and mincore saw it gone; the rest is warm")
