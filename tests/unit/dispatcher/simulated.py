"""A service in simulated time: Poisson arrivals, places, log-normal runs, strict classes; measured by a Forecast."""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from metamusesd.dispatcher.forecast import Forecast, raw_s

TIER = "fast"
SURVEY_S, SAMPLE_S = 1.0, 0.2
SPREAD = 0.8  # sigma of the logarithm of a run


@dataclass(slots=True)
class Job:
    """One arrival, what was predicted for it, and what happened."""

    order: int
    priority: int
    at_s: float
    run_s: float
    ahead: int = 0
    p50_s: float | None = None
    p90_s: float | None = None
    deadline_s: float = math.inf  # from its arrival
    refused: bool = False
    ghost: bool = False  # refused: it waits for its turn, and takes no place when that comes
    started_s: float = 0.0

    @property
    def key(self) -> tuple[int, int]:
        return -self.priority, self.order

    @property
    def waited_s(self) -> float:
        return self.started_s - self.at_s

    @property
    def made_it(self) -> bool:
        return self.waited_s + self.run_s <= self.deadline_s


@dataclass
class Simulation:
    """`load` is arrivals over what the places can do; `mix` the shares of the classes, low first."""

    seed: int
    load: float
    mix: tuple[float, ...] = (0.0, 1.0, 0.0, 0.0)
    swing: float = 0.0  # the load goes up and down by this share
    jobs: int = 2500
    places: int = 16
    run_s: float = 1.0
    deadline_s: Callable[[random.Random], float] = lambda _: math.inf
    admit: Callable[[Job, Forecast, int], bool] = lambda job, forecast, ahead: True
    forecast: Forecast = field(default_factory=lambda: Forecast([TIER]))

    def run(self) -> list[Job]:
        """All jobs, in the order of their starts."""
        self._random, self._ended, self._waiting = random.Random(self.seed), list[float](), list[Job]()
        self._free, self._done, survey_s = self.places, list[Job](), 0.0
        self._watched_s = -math.inf
        for job in self._arrivals():
            self._serve_until(job.at_s)
            while survey_s < job.at_s:
                survey_s += SURVEY_S
                self._survey(survey_s)
            self._arrive(job)
        self._serve_until(math.inf)
        return self._done

    def _arrivals(self) -> Iterator[Job]:
        at_s, mean = 0.0, math.log(self.run_s) - SPREAD**2 / 2
        for order in range(self.jobs):
            load = self.load * (1 + self.swing * math.sin(at_s / 50))
            at_s += self._random.expovariate(load * self.places / self.run_s)
            priority = self._random.choices(range(4), self.mix)[0]
            job = Job(order, priority, at_s, self._random.lognormvariate(mean, SPREAD))
            job.deadline_s = self.deadline_s(self._random)
            yield job

    def _survey(self, now_s: float) -> None:
        for _ in range(5):
            if (id := self.forecast.overdue(now_s)) is not None:
                self.forecast.waits(id, now_s)
        self.forecast.calibrate()

    def _arrive(self, job: Job) -> None:
        place = bisect_left(self._waiting, job.key, key=lambda other: other.key)
        job.ahead = sum(not other.ghost for other in self._waiting[:place])
        service = self.forecast.service(TIER, "m", self._free, job.at_s)
        if not self.admit(job, self.forecast, job.ahead):
            job.refused = job.ghost = True
        elif (raw := raw_s(job.ahead, [service])) is not None and raw > 0:
            job.p50_s, job.p90_s = service.factor_p50 * raw, service.factor_p90 * raw
            if job.at_s - self._watched_s >= SAMPLE_S:
                self._watched_s = job.at_s
                self.forecast.watch(str(job.order), TIER, raw, job.at_s)
        insort(self._waiting, job, key=lambda other: other.key)
        self._start(job.at_s)

    def _serve_until(self, now_s: float) -> None:
        while self._ended and self._ended[0] <= now_s:
            at_s = heapq.heappop(self._ended)
            self._free += 1
            self._start(at_s)

    def _start(self, now_s: float) -> None:
        count = 0
        while self._free and self._waiting:
            job = self._waiting.pop(0)
            job.started_s = now_s
            self._done.append(job)
            if not job.ghost:
                count += 1
                self._free -= 1
                heapq.heappush(self._ended, now_s + job.run_s)
                self.forecast.begun(str(job.order), now_s)
                self.forecast.tiers[TIER].runs.append((job.run_s, 100))
        self.forecast.tiers[TIER].rate.started(count, any(not job.ghost for job in self._waiting), now_s)
