"""Example · the demonstration's second act · one question computed, then asked again, in other words, and almost.

Every line shows who answered: a model, the exact cache, the semantic cache, or the run of an equal job that was under
way; and why a near-twin was refused.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from metamusesd.client import Client
from metamusesd.commands import screen
from metamusesd.job import InferenceRequest, Params, Result

ANSWER_CHARS = 48
EQUAL_JOBS = 10


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and the `cache.kind` of the result that it must get."""

    query: str
    expected: str
    note: str


SCRIPT = (
    Asked("Should you stretch before running?", "miss", "never asked before"),
    Asked("Should you stretch before running?", "exact", "the same, from another user"),
    Asked("Should one stretch before running?", "semantic", "the same in other words"),
    Asked("Should you stretch after running?", "miss", "a near-twin"),
)
TOGETHER = "How do plants make food?"


async def show_cache(client: Client) -> list[str]:
    """Ask, print the table, and return what went otherwise than it should."""
    rows, wrong = [], []
    for number, asked in enumerate(SCRIPT):
        result = await client.execute(_request(asked.query, f"user-{number}"))
        rows.append(_row(asked.query, asked.note, result))
        if _kind(result) != asked.expected:
            wrong.append(f"{asked.query}: {_kind(result)} instead of {asked.expected}")
    if "antonym" not in rows[-1][-2]:
        wrong.append(f"{SCRIPT[-1].query}: refused because of {rows[-1][-2] or 'nothing'}")
    requests = [_request(TOGETHER, f"crowd-{number}") for number in range(EQUAL_JOBS)]
    results = await asyncio.gather(*map(client.execute, requests))
    shared = [result for result in results if _kind(result) == "flight"]
    computed = next((result for result in results if not result.from_cache), results[0])
    rows.append(_row(TOGETHER, f"{EQUAL_JOBS} users at the same moment", computed))
    rows.append(_row("", f"… {len(shared)} of them", (shared or results)[0]))
    if len(shared) != EQUAL_JOBS - 1:
        wrong.append(f"{TOGETHER}: {len(shared)} of {EQUAL_JOBS} shared one run")
    print()
    headings = ("question", "asked", "answered by", ">ms", ">score", "because", "answer")
    screen.show(screen.table(headings, rows))
    return wrong


def _request(query: str, user: str) -> InferenceRequest:
    params = Params(temperature=0.0, max_tokens=400)  # a cut answer would not be kept
    return InferenceRequest(user_query=query, user_address=user, params=params)


def _kind(result: Result) -> str:
    return result.cache.kind if result.cache is not None else ""


def _row(query: str, note: str, result: Result) -> tuple[str, ...]:
    names = {"exact": "exact cache", "semantic": "semantic cache", "flight": "the same run"}
    kind, cache = _kind(result), result.cache
    return (
        query, note, names.get(kind, result.worker), f"{result.latency_ms:.1f}",
        f"{cache.score:.3f}" if cache and cache.score else "", cache.reason if cache else "",
        " ".join(result.content.split())[:ANSWER_CHARS],
    )  # fmt: skip
