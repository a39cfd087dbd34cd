"""Example · the demonstration's third act · what prompts ask for, and a tier that helps out when another one is busy.

A daemon of its own with two tiers, fast and medium. Both have the demo model here, under two names: on a machine with
more memory medium would have a larger one. More simple questions come at once than fast has places for: some of them
are expected to be finished sooner by medium, wait for both, and are served by whichever is free first.
"""

from __future__ import annotations

import asyncio
import time

from metamusesd.client import Client
from metamusesd.commands import screen
from metamusesd.config import Config
from metamusesd.dispatcher.router import TierView, route
from metamusesd.job import InferenceRequest, Params, Result
from metamusesd.tiers import TIERS

OVERRIDES = {
    "models.smollm2-too.file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "tiers.fast.workers": "1",
    "tiers.fast.slots": "2",
    "tiers.medium.model": "smollm2-too",
    "tiers.medium.workers": "1",
    "tiers.medium.slots": "4",
    "cache.enabled": "false",
}
PROMPTS = (
    "Hello, how are you?",
    "How did the printing press change the towns of Europe?",
    "Explain the philosophical implications of artificial consciousness",
    "Write a function to sort an array",
    "Escribe una función que invierta una cadena",
    "A train leaves at 9:40 and arrives at 13:05. How long does it travel?",
    "Prove that there are infinitely many prime numbers",
    "All muses sing. Clio does not sing. Does it follow that Clio is no muse: true, false or uncertain?",
)
CROWD = 12
SUBJECTS = ("the sea", "a lighthouse", "winter", "an old map", "honey", "a violin", "the moon", "bread", "a comet",
            "ink", "a mountain", "silence")  # fmt: skip


def show_routes() -> None:
    """What the router makes of prompts, were all six tiers there."""
    views = [TierView(tier, tier) for tier in TIERS]
    rows = []
    for prompt in PROMPTS:
        begun_ns = time.perf_counter_ns()
        found = route(InferenceRequest(user_query=prompt), views)
        took_ms = (time.perf_counter_ns() - begun_ns) / 1e6
        because = ", ".join(name for name, _ in found.features)
        rows.append((prompt[:64], found.domain, found.complexity, f"{found.score:.2f}", found.tiers[0],
                     f"{took_ms:.2f}", because))  # fmt: skip
    headings = ("prompt", "domain", "level", ">score", "tier", ">ms", "because of")
    screen.show("", screen.table(headings, rows))


async def show_upgrade(config: Config) -> list[str]:
    """More simple jobs than the fast tier has places for; what went otherwise than it should."""
    async with Client.from_config(config) as client, asyncio.timeout(60):
        results = await asyncio.gather(*(client.execute(_request(subject)) for subject in SUBJECTS[:CROWD]))
    lost = [result.request_id for result in results if result.state != "done"]
    upgraded = [result for result in results if result.tier == "medium"]
    print(f"\n{CROWD} simple questions at once: {CROWD - len(upgraded)} served by fast, {len(upgraded)} by medium")
    if lost or not upgraded:
        return [f"routing: not done: {', '.join(lost) or 'none'}; served by medium: {len(upgraded)}"]
    _explain(max(upgraded, key=lambda result: len(result.route.reason) if result.route else 0))
    return []


def _request(subject: str) -> InferenceRequest:
    query = f"Tell me one nice thing about {subject}."
    return InferenceRequest(user_query=query, params=Params(max_tokens=40, seed=1, temperature=0.2))


def _explain(result: Result) -> None:
    """One line of what `metamusesd explain` tells of a job."""
    if result.route is not None:
        waits = ", ".join(f"{each.tier} {each.wait_s} s + {each.run_s} s" for each in result.route.outlook)
        print(f"one of them: {result.route.reason}\n            expected wait and run: {waits}")
