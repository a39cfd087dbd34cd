"""Faults benchmark · bench process · how soon work goes on after a death, and a place is free after a cancel.

Times are differences of one host's clocks: the moment of the signal here, the moment of the event in Redis' stream ids.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.family import Family
from benchmarks.faults.history import now_ms
from benchmarks.faults.resp import Redis
from benchmarks.report import Report, Row, absolute
from metamusesd.client import Client
from metamusesd.config import DEMO_MODEL
from metamusesd.job import TERMINAL, InferenceRequest, Params

ROUNDS, QUICK_ROUNDS = 20, 2
CANCELS, QUICK_CANCELS = 100, 5
LIMIT_S = 30.0
STREAMS = 4
LONG = "on and on !tokens=100000 !delay=5ms"

ONE_PLACE = """
[daemon]
state_dir = "{folder}/s"
models_dir = "{models}"
[redis]
appendfsync = "{appendfsync}"
[cache]
enabled = false
[models.m]
{model}
[tiers.fast]
model = "m"
workers = 1
slots = 1
reserve_slots = 1
"""
ECHO = 'engine = "echo"\ncontext = 200000'
REAL = f'file = "{DEMO_MODEL}"\ncontext = 4096\nyield_limit_s = 600'

Clock = Callable[[Family, Client, list[str]], Awaitable[float]]


def run(args: argparse.Namespace) -> Report:
    """All rows."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> Report:
    report = Report(benchmark="faults", command=args.command)
    rounds = args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    for metric, bar, clock in CLOCKS:
        times = await _deaths(clock, rounds)
        print(f"{metric}: {times}", flush=True)
        case = f"{rounds} rounds, {STREAMS} streams"
        report.rows.append(absolute(f"{metric}, p50", case, "ms", times))
        report.rows.append(absolute(f"{metric}, longest", case, "ms", [max(times)], bar=bar))
    cancels = QUICK_CANCELS if args.quick else CANCELS
    report.rows += await _cancel_rows(cancels, ECHO, "echo engine", _echo_phases())
    models = Path(os.environ.get("MODELS_DIR", "models")).absolute()
    if (models / DEMO_MODEL).is_file():
        report.rows += await _cancel_rows(cancels, REAL, DEMO_MODEL, _real_phases())
    else:
        report.notes.append(f"no {DEMO_MODEL} in MODELS_DIR: cancels were measured with the echo engine alone")
    report.notes.append(
        "a place is free when the next job starts; real model and pre-empted: when the worker's row says so"
    )
    return report


async def _deaths(clock: Clock, rounds: int) -> list[float]:
    """So many times: streams run, something dies; milliseconds until the last of those that it hit goes on."""
    family = Family()
    try:
        await family.start()
        times = []
        for _ in range(rounds):
            async with family.client() as client:
                ids = [(await client.submit({"user_query": LONG, "tier": "fast"})).id for _ in range(STREAMS)]
                await asyncio.gather(*(_token_after(family, id, 0.0) for id in ids))
                times.append(round(await clock(family, client, ids), 1))
                await asyncio.gather(*(client.cancel(id) for id in ids))
            await family.until_ready(LIMIT_S)
        return times
    finally:
        family.close()


async def _worker_dies(family: Family, client: Client, ids: list[str]) -> float:
    status = await family.status()
    busy = max((kid for kid in status["workers"] if kid["tier"] == "fast"), key=lambda kid: int(kid["slots_used"]))
    at_ms = now_ms()
    os.kill(busy["pid"], signal.SIGKILL)
    resumed = await asyncio.gather(*(_resumed(family, id, at_ms) for id in ids))
    return max(resume for resume in resumed if resume is not None) - at_ms


async def _dispatcher_dies(family: Family, client: Client, ids: list[str]) -> float:
    pids = await family.pids()
    at_ms = now_ms()
    os.kill(pids["dispatcher"], signal.SIGKILL)
    resumed = await asyncio.gather(*(_token_after(family, id, at_ms) for id in ids))
    after = (await family.until_ready(LIMIT_S))["workers"]
    if {kid["name"]: kid["pid"] for kid in after} != {kid["name"]: pids[kid["name"]] for kid in after}:
        raise RuntimeError("a worker was replaced when the dispatcher died")
    return max(resumed) - at_ms


async def _redis_dies(family: Family, client: Client, ids: list[str]) -> float:
    """From the first PING that the new server answers."""
    os.kill((await family.pids())["redis"], signal.SIGKILL)
    await asyncio.sleep(0.05)
    redis, answers_ms = Redis(family.redis_socket, timeout_s=1.0), 0.0
    async with asyncio.timeout(LIMIT_S):
        while not answers_ms:
            with suppress(Exception):
                await redis.ask("GET", "any")
                answers_ms = now_ms()
            await asyncio.sleep(0.002)
    redis.close()
    return max(0.0, max(await asyncio.gather(*(_token_after(family, id, answers_ms) for id in ids))) - answers_ms)


async def _supervisor_dies(family: Family, client: Client, ids: list[str]) -> float:
    """With a parent that starts the next one at once."""
    assert family.process is not None
    at_ms = now_ms()
    family.process.kill()
    await family.gone()
    await family.start()
    return max(await asyncio.gather(*(_token_after(family, id, at_ms) for id in ids))) - at_ms


CLOCKS: tuple[tuple[str, str | None, Clock], ...] = (
    ("worker killed to its jobs' next token", "<= 1000", _worker_dies),
    ("dispatcher killed to next token, same workers", "<= 1000", _dispatcher_dies),
    ("Redis answers again to next token", "<= 2000", _redis_dies),
    ("supervisor killed and restarted to next token", None, _supervisor_dies),
)


async def _token_after(family: Family, id: str, at_ms: float) -> float:
    """When the first token after `at_ms` was written."""
    return await _event(family, id, at_ms, "token")


async def _resumed(family: Family, id: str, at_ms: float) -> float | None:
    """When the first token after its restart was written; None: this job's worker lived on."""
    first = await _event(family, id, at_ms + 1000, "token", "restarted")
    redis = Redis(family.redis_socket)
    events = await redis.ask("XRANGE", f"{{metamuse}}:events:{id}", f"{at_ms:.0f}", "+")
    redis.close()
    kinds = [(int(at.split(b"-")[0]), words[1].decode()) for at, words in events]
    places = [place for place, (_, kind) in enumerate(kinds) if kind == "restarted"]
    if not places:
        return None
    after = [at for at, kind in kinds[places[0] :] if kind == "token"]
    return float(after[0]) if after else await _event(family, id, first, "token")


async def _event(family: Family, id: str, at_ms: float, *kinds: str) -> float:
    """When the first event of one of these kinds after `at_ms` was written."""
    redis, key = Redis(family.redis_socket), f"{{metamuse}}:events:{id}"
    cursor = f"{max(0, int(at_ms))}-0"
    try:
        async with asyncio.timeout(LIMIT_S):
            while True:
                with suppress(OSError):
                    for entry, words in await redis.ask("XRANGE", key, f"({cursor}", "+", "COUNT", 200) or []:
                        cursor = entry.decode()
                        if words[1].decode() in kinds:
                            return float(cursor.split("-")[0])
                await asyncio.sleep(0.005)
    finally:
        redis.close()


# cancels


@dataclass(frozen=True, slots=True)
class Phase:
    """How a job is brought into a phase, and by what its place is seen to be free."""

    request: InferenceRequest
    there: str  # an event of the job, or slots_used: a field of its worker's row
    free: str  # an event of the job that waits behind it, or slots_used: its worker's row is empty


def _echo_phases() -> dict[str, Phase]:
    return {
        "preparing": Phase(
            InferenceRequest(user_query="a !prepare=300ms !tokens=500 !delay=5ms"), "started", "started"
        ),
        "prefill": Phase(InferenceRequest(user_query="a !prefill=30s"), "slots_used", "token"),
        "decode": Phase(InferenceRequest(user_query=LONG), "token", "token"),
    }


def _real_phases() -> dict[str, Phase]:
    greedy = Params(max_tokens=3000, temperature=0.0, ignore_eos=True)
    prompt = "one more stone " * 1200
    return {
        "prefill": Phase(InferenceRequest(user_query=prompt, params=Params(max_tokens=9)), "slots_used", "slots_used"),
        "decode": Phase(InferenceRequest(user_query="Count to a million.", params=greedy), "token", "slots_used"),
    }


async def _cancel_rows(count: int, model: str, name: str, phases: dict[str, Phase]) -> list[Row]:
    models = Path(os.environ.get("MODELS_DIR", "models")).absolute()
    family = Family(config=ONE_PLACE, model=model, models=models)
    measured: dict[str, list[float]] = {}
    try:
        await family.start()
        async with family.client() as client:
            for label, phase in phases.items():
                measured[label] = [await _cancelled(family, client, phase) for _ in range(count)]
            if model == ECHO:
                measured["queued"] = [await _cancelled_in_queue(family, client) for _ in range(count)]
                measured["pre-empted"] = [await _cancelled_preempted(family, client) for _ in range(count)]
    finally:
        family.close()
    rows = []
    for label, times in measured.items():
        times.sort()
        case = f"{label}, {name}, {count} cancels"
        rows.append(absolute("cancel to place free, p50", case, "ms", times))
        rows.append(absolute("cancel to place free, p99", case, "ms", [_p99(times)], bar="<= 100"))
    return rows


async def _cancelled(family: Family, client: Client, phase: Phase) -> float:
    """Milliseconds from the cancel of a job in some phase to its place being free."""
    id = (await client.submit(phase.request)).id
    if phase.there == "slots_used":
        await _row(family, lambda worker: bool(worker["slots_used"]))
        await asyncio.sleep(0.02)
    else:
        await _until(client, id, phase.there)
    if phase.free == "slots_used":
        start_s = time.perf_counter()
        assert await client.cancel(id) == "cancelled"
        await _row(family, lambda worker: not worker["slots_used"])
        return (time.perf_counter() - start_s) * 1000
    behind = (await client.submit({"user_query": "next"})).id
    await _ready(client, behind)
    seen = asyncio.create_task(_until(client, behind, phase.free))
    await asyncio.sleep(0.02)  # the reader stands in its place before the clock starts
    start_s = time.perf_counter()
    assert await client.cancel(id) == "cancelled"
    took_ms = (await seen - start_s) * 1000
    await client.wait(behind, LIMIT_S)
    await _row(family, lambda worker: not worker["slots_used"])
    return took_ms


async def _cancelled_in_queue(family: Family, client: Client) -> float:
    """A queued job holds no place: how long the call takes, behind one that runs."""
    running = (await client.submit({"user_query": LONG, "priority": "high"})).id
    waits = (await client.submit({"user_query": "waits"})).id
    await _ready(client, waits)
    start_s = time.perf_counter()
    assert await client.cancel(waits) == "cancelled"
    took_ms = (time.perf_counter() - start_s) * 1000
    await client.cancel(running)
    await _row(family, lambda worker: not worker["slots_used"])
    return took_ms


async def _cancelled_preempted(family: Family, client: Client) -> float:
    """A low job that yields to a critical one holds a reserve place."""
    low = (await client.submit({"user_query": LONG, "priority": "low"})).id
    await _until(client, low, "token")
    critical = (await client.submit({"user_query": LONG, "priority": "critical"})).id
    await _row(family, lambda worker: bool(worker["preempted"]))
    start_s = time.perf_counter()
    assert await client.cancel(low) == "cancelled"
    await _row(family, lambda worker: not worker["preempted"])
    took_ms = (time.perf_counter() - start_s) * 1000
    await client.cancel(critical)
    await _row(family, lambda worker: not worker["slots_used"])
    return took_ms


async def _ready(client: Client, id: str) -> None:
    """Until it waits in its tier."""
    async with asyncio.timeout(LIMIT_S):
        while (await client.status(id)).state != "ready":
            await asyncio.sleep(0.005)


async def _until(client: Client, id: str, kind: str) -> float:
    """When a reader heard the first event of that kind, or the end."""
    async with asyncio.timeout(LIMIT_S):
        async for event in client.stream(id):
            if event.kind == kind or event.kind in TERMINAL:
                return time.perf_counter()
    raise RuntimeError(f"{id} ended without {kind}")


async def _row(family: Family, condition: Callable[[dict[str, int]], bool]) -> None:
    """Until the one worker's row says so."""
    async with asyncio.timeout(LIMIT_S):
        while not ((status := await family.status()) and condition(status["workers"][0])):
            await asyncio.sleep(0.002)


def _p99(ordered: list[float]) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
