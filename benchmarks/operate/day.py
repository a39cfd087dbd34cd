"""Operate benchmark · bench process · a day of traffic, drawn from a seed: how many jobs come when, and what they are.

The day begins at 08:00, so that the peak of the morning comes first and the night last: what a process keeps after its
peak is compared with what it keeps a night later.

    08  11  13      18   21  23        05   08
    ╱▔▔╲__╱▔▔▔▔╲__╱▔▔▔╲____________________╱
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

HOURS = 24.0
RATE = (0.6, 0.9, 1.0, 0.95, 0.7, 0.55, 0.8, 0.85, 0.8, 0.7, 0.55, 0.5, 0.65, 0.75, 0.6, 0.35, 0.2, 0.12, 0.08, 0.06,
        0.06, 0.08, 0.15, 0.35)  # fmt: skip  # share of the peak, from 08:00 on
TENANTS = ("atlas", "birch", "cedar", "delta")
POOL = 400  # questions that come again and again, the first ones most
WEIGHTS = {
    "question": 27, "chat": 30, "real": 7, "streamed": 12, "long": 6, "cancelled": 7, "deadline": 5, "bad": 4,
    "schema": 2,
}  # fmt: skip
MAY_END = {"cancelled": {"cancelled", "done"}, "deadline": {"done", "expired", "failed"}, "bad": {"failed"}}
BAD = (
    {"user_query": ""},
    {"user_query": "hi", "params": {"max_tokens": -4}},
    {"user_query": "hi", "tier": "galactic"},
    {"user_query": "hi", "params": {"temperature": "warm"}},
    {"user_query": "hi !refuse", "tier": "medium", "cache": {"read": False, "write": False}},
)
THINGS = ("rivers", "mountains", "poems", "kings", "engines", "bridges", "spices", "planets", "harbours", "songs")
PLACES = ("Norway", "Peru", "Kenya", "Japan", "Wales", "Chile", "Egypt", "Nepal", "Spain", "Ghana")
ASKED = ("Name some {} of {}.", "What are famous {} of {}?", "Tell me about the {} of {}.", "Which {} does {} have?")
NO_CACHE = {"read": False, "write": False}


@dataclass(frozen=True, slots=True)
class Job:
    """One job of the day. `at`: a share of the day; `follow`: its stream is read; `cancel_s`: when it is cancelled."""

    at: float
    kind: str
    body: dict[str, Any] = field(default_factory=dict)
    follow: bool = False
    cancel_s: float = 0.0

    @property
    def may_end(self) -> set[str]:
        """The states that are right for it, once it was accepted."""
        return MAY_END.get(self.kind, {"done"})


def share(at: float) -> float:
    """Of the peak's rate, at this share of the day."""
    hour = at * HOURS
    before = int(hour) % len(RATE)
    part = hour - int(hour)
    return RATE[before] * (1 - part) + RATE[(before + 1) % len(RATE)] * part


def jobs(seed: int, seconds: float, peak_hz: float) -> Iterator[Job]:
    """All jobs of the day in their order, as a thinned Poisson process."""
    dice, at_s = random.Random(f"{seed}/day"), 0.0
    while (at_s := at_s + dice.expovariate(peak_hz)) < seconds:
        if dice.random() < share(at_s / seconds):
            yield _job(dice, at_s / seconds)


def _job(dice: random.Random, at: float) -> Job:
    kind = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    if kind == "bad":
        return Job(at, kind, dict(dice.choice(BAD)))
    body = _body(dice, kind) | {"tenant": dice.choice(TENANTS), "priority": dice.choice((0, 1, 1, 1, 2, 3))}
    if kind == "deadline":
        body["deadline_ms"] = dice.choice((150, 1_000, 5_000))
    cancel_s = dice.uniform(0.0, 2.0) if kind == "cancelled" else 0.0
    return Job(at, kind, body, kind in ("streamed", "real") or dice.random() < 0.2, cancel_s)


def _body(dice: random.Random, kind: str) -> dict[str, Any]:
    """What is asked, and of whom: the real model is `fast`, the echo workers are `medium`."""
    word = f"{dice.randrange(1 << 30):x}"
    if kind == "question":
        return {"user_query": question(min(POOL - 1, int(dice.paretovariate(0.6)) - 1)), "tier": "medium"}
    if kind == "real":
        brief = {"max_tokens": dice.randint(4, 24), "temperature": 0.0}
        return {"user_query": f"Say something about {word}.", "tier": "fast", "params": brief, "cache": NO_CACHE}
    if kind == "schema":
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {"word": {"type": "string", "maxLength": 8}},
            "required": ["word"],
        }
        params: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0, "json_schema": schema}
        return {"user_query": f"A word like {word}.", "tier": "fast", "params": params, "cache": NO_CACHE}
    if kind == "long":
        real = dice.random() < 0.15
        text = " ".join(f"{word} {number}" for number in range(120 if real else dice.randint(500, 4_000)))
        return {"user_query": text, "tier": "fast" if real else "medium", "params": {"max_tokens": 8}}
    tokens, delay_ms = dice.randint(2, 60), dice.choice((1, 2, 5))
    return {"user_query": f"{word} and so on !tokens={tokens} !delay={delay_ms}ms", "tier": "medium"}


def question(number: int) -> str:
    """One of the pool."""
    form, rest = ASKED[number % len(ASKED)], number // len(ASKED)
    return form.format(THINGS[rest % len(THINGS)], PLACES[rest // len(THINGS) % len(PLACES)])
