"""Cache benchmark · bench process · the day of demo traffic through the real daemon, and through a plain cosine cache.

The echo engine says the question again, so an answer names the question that it was computed for, and the truth about
every hit is known. The entry that a note names is computed anew from the asker's own partition: an answer that came
over a wall counts as wrong whatever it says.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from benchmarks.cache_day import Ask, Given, chances, day, flat, is_right
from benchmarks.cache_ours import configured, daemon
from benchmarks.cache_rows import beside
from benchmarks.cache_seed import identity_of_echo
from benchmarks.report import Row
from metamusesd import config
from metamusesd.cache.base import entry_id
from metamusesd.cache.partition import question_of
from metamusesd.client import Client
from metamusesd.job import InferenceRequest

if TYPE_CHECKING:
    from metamusesd.cache.embedder import FastEmbedder

REQUESTS, QUICK_REQUESTS = 2_000, 300
WAVES_AT_ONCE = 4
SLOWLY = '{ delay = "4ms" }'  # a word: jobs take tens of milliseconds, so that equal ones meet
ASK_TIMEOUT_S = 30.0
PLAIN = 0.95
SHOWN = 10
PERSONAS = {"sage": "A calm sage.", "jester": "A witty jester.", "coach": "A strict coach.", "poet": "A shy poet."}
PLAIN_NAME = f"cosine >= {PLAIN}, same walls"


def rows(embedder: FastEmbedder | None, quick: bool) -> tuple[list[Row], list[str]]:
    """Replay the day once; also through a plain cosine cache when there is an embedder."""
    waves = day(QUICK_REQUESTS if quick else REQUESTS)
    asks = flat(waves)
    ours = uvloop.run(_ours(waves))
    plain = _plain(asks, embedder) if embedder is not None else None
    case = f"{len(asks)} requests"
    return [*_shares(case, ours, plain), *_quality(case, asks, ours, plain)], _notes(asks, ours)


def _shares(case: str, ours: Sequence[Given], plain: Sequence[Given] | None) -> list[Row]:
    def row(metric: str, kinds: tuple[str, ...], bar: str | None) -> Row:
        sides = [None if side is None else sum(each.kind in kinds for each in side) / len(side)
                 for side in (ours, plain)]  # fmt: skip
        return beside(f"replay: {metric}", case, "of all", [(sides[0], sides[1])], PLAIN_NAME, bar)

    return [
        row("hits", ("exact", "semantic", "flight"), "> 0"),
        row("exact hits", ("exact",), "> 0"),
        row("semantic hits", ("semantic",), "> 0"),
        row("flights shared", ("flight",), "> 0"),
    ]


def _quality(case: str, asks: list[Ask], ours: Sequence[Given], plain: Sequence[Given] | None) -> list[Row]:
    def wrong(givens: Sequence[Given] | None) -> float | None:
        return None if givens is None else float(len(mistakes(asks, givens)))

    found = [beside("replay: wrong hits", case, "hits", [(wrong(ours), wrong(plain))], PLAIN_NAME, "<= 0")]
    could = chances(asks, ours), chances(asks, plain) if plain is not None else {}
    names = {"equal": "hit, of those whose text was asked before", "worded": "hit, of those asked in other words"}
    for which, bar in (("equal", ">= 0.95"), ("worded", "> 0")):
        shares = [side[which][0] / max(1, side[which][1]) if side else None for side in could]
        found.append(beside(f"replay: {names[which]}", case, "share", [(shares[0], shares[1])], PLAIN_NAME, bar))
    return found


def mistakes(asks: Sequence[Ask], givens: Sequence[Given]) -> list[tuple[Ask, Given]]:
    """The hits that were wrong."""
    return [(ask, given) for ask, given in zip(asks, givens, strict=True) if given.is_hit and not is_right(ask, given)]


def _notes(asks: list[Ask], ours: list[Given]) -> list[str]:
    kinds = Counter(given.kind for given in ours)
    by_kind = Counter(ask.meaning.kind for ask, given in zip(asks, ours, strict=True) if given.is_hit)
    asked = Counter(ask.meaning.kind for ask in asks)
    wrong = [f"replay: WRONG {given.kind} hit: {ask.text!r} got {given.content!r}"
             + ("" if given.entry_fits else ", over a wall") for ask, given in mistakes(asks, ours)]  # fmt: skip
    return [f"replay: {dict(kinds)}; hits by kind of question {dict(by_kind)}, of {dict(asked)}", *wrong[:SHOWN]]


async def _ours(waves: list[list[Ask]]) -> list[Given]:
    """WAVES_AT_ONCE waves at a time, as they come."""
    with tempfile.TemporaryDirectory(prefix="mm-day-") as folder:
        path = configured(Path(folder) / "state", SLOWLY)
        whose = identity_of_echo(config.load(path, environ={}))
        async with daemon(path) as client:
            turns = asyncio.Semaphore(WAVES_AT_ONCE)

            async def send(wave: list[Ask]) -> list[Given]:
                async with turns:
                    return await asyncio.gather(*(_give(client, ask, whose) for ask in wave))

            return [each for wave in await asyncio.gather(*map(send, waves)) for each in wave]


async def _give(client: Client, ask: Ask, whose: str) -> Given:
    request = InferenceRequest(
        user_query=ask.text, tenant=ask.tenant, muse_id=ask.muse, persona=PERSONAS[ask.muse], user_address=ask.user
    )
    result = await client.execute(request, ASK_TIMEOUT_S)
    kind, entry = (result.cache.kind, result.cache.entry) if result.cache is not None else ("off", "")
    question = question_of(request)
    near = [entry_id(partition, result.content) for partition in question.partitions([whose])]
    fits = {"exact": [question.key(whose)], "semantic": near}
    return Given(kind, result.content, kind not in fits or entry in fits[kind])


def _plain(asks: list[Ask], embedder: FastEmbedder) -> list[Given]:
    """One after another: the nearest question of the same tenant and muse, if it is near enough."""
    import numpy as np

    texts = list(dict.fromkeys(ask.text for ask in asks))
    vectors = dict(zip(texts, embedder.embed(texts), strict=True))
    kept: dict[tuple[str, str], list[str]] = {}
    givens = []
    for ask in asks:
        there = kept.setdefault((ask.tenant, ask.muse), [])
        scores = np.stack([vectors[text] for text in there]) @ vectors[ask.text] if there else np.zeros(1)
        if scores.max() >= PLAIN:
            nearest = there[int(scores.argmax())]
            givens.append(Given("exact" if nearest == ask.text else "semantic", nearest))
        else:
            there.append(ask.text)
            givens.append(Given("miss", ask.text))
    return givens
