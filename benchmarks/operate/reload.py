"""Operate benchmark · bench process · reload: what the replacement of one worker costs a stream on the other one.

One job streams on `fast` from beginning to end; meanwhile `medium`'s worker, on a core of its own, is replaced again
and again by reloads that change its slots. In the rounds beside it that worker generates: a core that is busy costs the
stream something by itself, for dispatcher, Redis and reader must run somewhere, and memory has one bandwidth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.faults.family import Family
from benchmarks.operate.homes import change_slots, family, model_of, said_load
from benchmarks.report import Report, compare
from metamusesd.client import Client
from metamusesd.job import InferenceRequest, Params

ROUNDS, QUICK_ROUNDS = 5, 1
TOKENS, QUICK_TOKENS = 400, 100
AGAINST = "that worker generates"


def run(args: argparse.Namespace) -> Report:
    """All rows."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> Report:
    report = Report(benchmark="operate", command=args.command)
    model, rounds = model_of(args), args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS)
    tokens = QUICK_TOKENS if args.quick else TOKENS
    home, pairs = family(model), list[tuple[list[float], list[float]]]()
    reloads = Reloads(home, model)
    try:
        await home.start()
        async with home.client() as client:
            await _gaps_ms(client, tokens)  # warm
            for _ in range(rounds):
                calm = await _beside_work(client, tokens)
                replacing = asyncio.create_task(reloads.run())
                disturbed = await _gaps_ms(client, tokens)
                reloads.enough = True
                await replacing
                pairs.append((disturbed, calm))
        await home.stop()
    finally:
        home.close()
    case = f"{tokens} tokens on another core"
    for metric, share, bar in (("p50", 0.5, "<= 1.05"), ("p90", 0.9, None), ("p99", 0.99, None)):
        found = [(_quantile(mine, share), _quantile(other, share)) for mine, other in pairs]
        report.rows.append(compare(f"inter-token {metric}, reload", case, "ms", found, against=AGAINST, bar=bar))
    report.notes.append(f"reload: {reloads.done} workers replaced in {rounds} rounds; {said_load()}")
    return report


class Reloads:
    """Replaces the worker of `medium`, again and again, until it is enough."""

    def __init__(self, home: Family, model: Path) -> None:
        self.done, self.enough = 0, False
        self._home, self._model = home, model

    async def run(self) -> None:
        """One after the other; returns after the one under way. Raises RuntimeError when one is refused."""
        self.enough = False
        while not self.enough:
            change_slots(self._home, self._model, 8 - (self.done + 1) % 2)
            await self._reload()
            self.done += 1

    async def _reload(self) -> None:
        """As `metamusesd reload` does it, without a process of its own beside the stream."""
        reader, writer = await asyncio.open_unix_connection(str(self._home.folder / "s/run/control.sock"))
        try:
            writer.write(b'{"do": "reload"}\n')
            while line := await reader.readline():
                said = json.loads(line)
                if "ok" in said:
                    if not said["ok"]:
                        raise RuntimeError(f"the reload was refused: {said}")
                    return
        finally:
            writer.close()
        raise RuntimeError("the daemon hung up before the reload was done")


async def _beside_work(client: Client, tokens: int) -> list[float]:
    """As `_gaps_ms`, while the other worker has a stream as well, that nobody reads."""
    params = Params(max_tokens=2 * tokens, temperature=0.0, ignore_eos=True)
    query = f"Describe {time.monotonic_ns()}."
    other = await client.submit(InferenceRequest(user_query=query, tier="medium", params=params, stream=False))
    try:
        return await _gaps_ms(client, tokens)
    finally:
        await client.cancel(other.id)


async def _gaps_ms(client: Client, tokens: int) -> list[float]:
    """The times between the tokens of one job, as its reader sees them."""
    params = Params(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    request = InferenceRequest(user_query=f"Tell me all about {time.monotonic_ns()}.", tier="fast", params=params)
    arrived_s = []
    receipt = await client.submit(request)
    async for event in client.stream(receipt.id):
        if event.text:
            arrived_s.append(time.perf_counter())
    return [1000 * (after - before) for before, after in pairwise(arrived_s)]


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
