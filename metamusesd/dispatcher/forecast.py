"""Stages 2, 6 · dispatcher · how fast a tier starts jobs, how long they run, how far predictions were off. Pure.

    raw_s = (jobs ahead + 1 - free places) / (starts per second)      wait = factor · raw_s

The factors are quantiles of (real wait / raw_s) over the last jobs that were watched. One that still waits after its
p90 counts with what it has waited so far: else a queue that grows would be judged by those who got through quickly.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from metamusesd.queues.base import Service

STARTS = 64  # that many starts ago, a rate's memory has faded to a third
LEAST_STARTS = 8  # before a rate is told
RATIOS = 192
LEAST_RATIOS = 20  # before quantiles of them are believed
PRIOR = {0.25: 0.5, 0.5: 1.0, 0.9: 2.0}  # until then
RUNS = 64
LEAST_RUNS = 8
MOST_WATCHED = 256


class Rate:
    """Starts per second of one tier, measured only over time that began and ended with jobs waiting."""

    def __init__(self) -> None:
        self._starts = self._busy_s = 0.0
        self._since_s: float | None = None  # of the last start that left jobs waiting

    def __repr__(self) -> str:
        return f"<Rate {self._starts:.0f} starts in {self._busy_s:.3f} s>"

    def started(self, count: int, waiting: bool, now_s: float) -> None:
        """A claim brought so many jobs; `waiting`: it left others there."""
        if count and waiting and self._since_s is not None:
            keep = math.exp(-count / STARTS)
            self._starts = self._starts * keep + count
            self._busy_s = self._busy_s * keep + now_s - self._since_s
        if not waiting:
            self._since_s = None
        elif count or self._since_s is None:
            self._since_s = now_s

    def hz(self, now_s: float) -> float:
        """0: not measured yet. A start that is long overdue lowers it."""
        if self._starts < LEAST_STARTS or self._busy_s <= 0:
            return 0.0
        hz = self._starts / self._busy_s
        if self._since_s is None:
            return hz
        return min(hz, (self._starts + 1) / (self._busy_s + now_s - self._since_s))


@dataclass(slots=True)
class Watched:
    """A job whose wait was predicted, until it starts."""

    tier: str
    raw_s: float
    at_s: float
    waited_s: float = 0.0  # it was seen waiting so long after


class TierForecast:
    """What was measured of one tier."""

    def __init__(self) -> None:
        self.rate = Rate()
        self.ratios: deque[float] = deque(maxlen=RATIOS)
        self.runs: deque[tuple[float, int]] = deque(maxlen=RUNS)  # (seconds, tokens) of answers
        self._factors = dict(PRIOR)

    def factor(self, share: float) -> float:
        """That share of the waits is shorter than factor · raw_s. `share` is a key of PRIOR."""
        return self._factors[share]

    def calibrate(self, late: Sequence[float]) -> None:
        """Work the factors out anew. `late`: ratios so far of those that still wait after their p90."""
        ratios = sorted([*self.ratios, *late])
        if len(ratios) >= LEAST_RATIOS:
            self._factors = {share: quantile(ratios, share) for share in PRIOR}

    def run_s(self, share: float, max_tokens: int | None) -> float | None:
        """That share of such answers took less; None: too few were seen. Shorter ones are scaled by their tokens."""
        if len(self.runs) < LEAST_RUNS:
            return None
        usual_tokens = quantile(sorted(tokens for _, tokens in self.runs), 0.5)
        scale = min(1.0, max_tokens / usual_tokens) if max_tokens and usual_tokens else 1.0
        return scale * quantile(sorted(seconds for seconds, _ in self.runs), share)

    @property
    def proven(self) -> bool:
        """The factors come from measurements."""
        return len(self.ratios) >= LEAST_RATIOS


class Forecast:
    """The measurements of one dispatcher for the tiers that it serves. Time comes in as an argument."""

    def __init__(self, tiers: Sequence[str]) -> None:
        self.tiers = {tier: TierForecast() for tier in tiers}
        self._watched: dict[str, Watched] = {}

    def __repr__(self) -> str:
        return f"<Forecast watched={len(self._watched)}>"

    def watch(self, id: str, tier: str, raw_s: float, now_s: float) -> None:
        """This job was just predicted to wait so long, before correction. With too many watched it is passed over."""
        if raw_s > 0 and tier in self.tiers and len(self._watched) < MOST_WATCHED:
            self._watched.setdefault(id, Watched(tier, raw_s, now_s))

    def begun(self, id: str, now_s: float) -> None:
        """It starts: the prediction meets the truth."""
        if (watched := self._watched.pop(id, None)) is not None:
            self.tiers[watched.tier].ratios.append((now_s - watched.at_s) / watched.raw_s)

    def overdue(self, now_s: float) -> str | None:
        """A watched job that ought to have started: ask whether it still waits. The one not asked about for longest."""
        late = [(job.at_s + job.waited_s, id) for id, job in self._watched.items() if self._late(job, now_s)]
        return min(late)[1] if late else None

    def waits(self, id: str, now_s: float) -> None:
        """It does."""
        if (watched := self._watched.get(id)) is not None:
            watched.waited_s = now_s - watched.at_s

    def forget(self, id: str) -> None:
        """It does not: somebody else started or ended it."""
        self._watched.pop(id, None)

    def calibrate(self) -> None:
        """Now and then: work out all factors."""
        for tier, forecast in self.tiers.items():
            mine = [job for job in self._watched.values() if job.tier == tier and job.waited_s]
            forecast.calibrate([job.waited_s / job.raw_s for job in mine])

    def service(self, tier: str, model: str, free: int, now_s: float) -> Service:
        """What is announced about a tier."""
        forecast = self.tiers[tier]
        return Service(
            model, free, round(forecast.rate.hz(now_s), 6), round(forecast.factor(0.5), 3),
            round(forecast.factor(0.9), 3),
        )  # fmt: skip

    def _late(self, job: Watched, now_s: float) -> bool:
        return now_s - job.at_s > self.tiers[job.tier].factor(0.9) * job.raw_s


def raw_s(ahead: int, services: Sequence[Service]) -> float | None:
    """The uncorrected wait of a job with so many ahead, where these hosts serve; None: nobody has measured it."""
    hz = sum(service.start_hz for service in services)
    if hz <= 0:
        return None
    return max(0, ahead + 1 - sum(service.free for service in services)) / hz


def quantile(ordered: Sequence[float], share: float) -> float:
    """The conformal one: a further value of the same kind is smaller with probability `share` at least."""
    return ordered[max(0, min(len(ordered), math.ceil((len(ordered) + 1) * share)) - 1)]
