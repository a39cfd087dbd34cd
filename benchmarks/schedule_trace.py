"""Schedule benchmark · bench process · the jobs that arrive: made from published laws and a seed, or read from a file.

Lengths are in tokens. Each muse has lognormal laws of its own; one answer in fifty is four times as long as its law
says, which makes the tail heavy. Half of the jobs give no max_tokens, the others one of LIMITS, chosen blindly, as
clients do; an answer ends there. Arrivals: `poisson`, or `bursty`, a Poisson process whose rate is four times as high
in bursts (8 s on average) as between them (24 s). Every trace is stretched in time, so that its own mean lengths and
its own duration give exactly the load that is asked for.

    a recorded trace, JSON lines:  {"at_s", "class", "prompt_tokens", "output_tokens", "tier"?, "muse"?, "max_tokens"?}
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from metamusesd.job import Priority, parse_priority

ARRIVALS = ("poisson", "bursty")
BURST_FACTOR, BURST_S, CALM_S = 4.0, 8.0, 24.0
SHARES = {Priority.LOW: 0.30, Priority.NORMAL: 0.50, Priority.HIGH: 0.15, Priority.CRITICAL: 0.05}
LIMITS = (128, 256, 512, 1024)  # max_tokens
MOST_OUTPUT, MOST_PROMPT = 2048, 8192
LONG_SHARE, LONG_FACTOR = 0.02, 4.0
TIER = "medium"


@dataclass(frozen=True, slots=True)
class Muse:
    """How much of the traffic a muse has, and the medians (tokens) and sigmas of its lognormal lengths."""

    name: str
    share: float
    prompt: float
    prompt_sigma: float
    output: float
    output_sigma: float


MUSES = (
    Muse("jester", 0.30, 120, 0.6, 40, 0.5),
    Muse("sage", 0.25, 200, 0.7, 160, 0.7),
    Muse("coach", 0.15, 300, 0.6, 100, 0.5),
    Muse("coder", 0.12, 700, 0.9, 320, 0.8),
    Muse("archivist", 0.10, 1800, 0.6, 120, 0.4),
    Muse("poet", 0.08, 100, 0.5, 600, 0.6),
)


@dataclass(frozen=True, slots=True)
class Job:
    """One request as it arrives; `output_tokens` is what only the model knows."""

    number: int
    at_s: float
    priority: Priority
    muse: str
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    tier: str = TIER


class _Line(msgspec.Struct, rename={"class_": "class"}):
    at_s: float
    class_: str | int
    prompt_tokens: int
    output_tokens: int
    tier: str = TIER
    muse: str = ""
    max_tokens: int | None = None


def synthetic(count: int, seed: int) -> list[Job]:
    """`count` jobs, Poisson at one a second; `timed` gives them their pace and their bursts."""
    dice = random.Random(seed)
    at_s, jobs = 0.0, []
    for number in range(count):
        at_s += dice.expovariate(1.0)
        jobs.append(_job(dice, number, at_s))
    return jobs


def timed(jobs: Sequence[Job], arrivals: str, rate_hz: float, seed: int) -> list[Job]:
    """The same jobs, arriving at `rate_hz` on average over exactly len(jobs) / rate_hz seconds."""
    dice = random.Random(seed * 7919 + 1)
    times_s = _bursty(dice, len(jobs), rate_hz) if arrivals == "bursty" else [job.at_s for job in jobs]
    scale = len(jobs) / rate_hz / times_s[-1]
    return [replace(job, at_s=at_s * scale) for job, at_s in zip(jobs, times_s, strict=True)]


def recorded(path: Path) -> list[Job]:
    """The jobs of a JSONL file, in order of arrival from 0 s."""
    decoder = msgspec.json.Decoder(_Line)
    lines = [decoder.decode(line) for line in path.read_bytes().splitlines() if line.strip()]
    lines.sort(key=lambda line: line.at_s)
    return [
        Job(number, line.at_s - lines[0].at_s, parse_priority(line.class_), line.muse, max(1, line.prompt_tokens),
            max(1, line.output_tokens), line.max_tokens, line.tier)
        for number, line in enumerate(lines)
    ]  # fmt: skip


def stretched(jobs: Sequence[Job], rate_hz: float) -> list[Job]:
    """A recorded trace at another speed: its own pattern of arrivals, at `rate_hz` on average."""
    scale = len(jobs) / rate_hz / max(jobs[-1].at_s, 1e-9)
    return [replace(job, at_s=job.at_s * scale) for job in jobs]


def means(jobs: Sequence[Job]) -> tuple[float, float]:
    """The mean prompt and output lengths in tokens."""
    return sum(job.prompt_tokens for job in jobs) / len(jobs), sum(job.output_tokens for job in jobs) / len(jobs)


def _job(dice: random.Random, number: int, at_s: float) -> Job:
    muse = dice.choices(MUSES, [muse.share for muse in MUSES])[0]
    priority = dice.choices(list(SHARES), list(SHARES.values()))[0]
    prompt = min(MOST_PROMPT, max(8, int(muse.prompt * dice.lognormvariate(0, muse.prompt_sigma))))
    output = muse.output * dice.lognormvariate(0, muse.output_sigma)
    output *= LONG_FACTOR if dice.random() < LONG_SHARE else 1.0
    limit = dice.choice(LIMITS) if dice.random() < 0.5 else None
    return Job(number, at_s, priority, muse.name, prompt, max(1, min(int(output), limit or MOST_OUTPUT)), limit)


def _bursty(dice: random.Random, count: int, rate_hz: float) -> list[float]:
    """Arrival times of a Markov-modulated Poisson process of two states, `rate_hz` on average in the long run."""
    calm_hz = rate_hz * (BURST_S + CALM_S) / (BURST_FACTOR * BURST_S + CALM_S)
    now_s, ends_s, burst, times_s = 0.0, dice.expovariate(1 / CALM_S), False, list[float]()
    while len(times_s) < count:
        gap_s = dice.expovariate(calm_hz * (BURST_FACTOR if burst else 1.0))
        if now_s + gap_s > ends_s:  # memoryless: draw anew from the change on
            now_s, burst = ends_s, not burst
            ends_s += dice.expovariate(1 / (BURST_S if burst else CALM_S))
            continue
        now_s += gap_s
        times_s.append(now_s)
    return times_s
