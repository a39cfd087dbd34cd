"""Schedule benchmark · bench process · which answers count as good, and the figures made of them.

    class      to the first token, at most          to the end, at most
    critical    1 s + own prompt                     1 s + 3 x alone
    high        2 s + own prompt                     2 s + 4 x alone
    normal      5 s + own prompt                     5 s + 5 x alone
    low        60 s + own prompt                    60 s + 10 x alone

`own prompt`: the time that the prompt takes on an idle middle worker; `alone`: the time of the whole job there.
Reasons: people who wait for a chat leave after seconds, so 1 to 5 s to the first token (MLPerf's Llama-2-70B server
scenario allows 2 s). A full batch on these workers makes a stream 1.5 to 2.2 times as slow as alone, and another 2.2
times while a prompt is computed beside it, so a factor under 3 would forbid batching; 3 x alone is 15 tokens/s, 5 x
is 9, still quicker than people read. Low is work that nobody watches: a minute is nothing. A job is good when it
keeps both limits. Goodput counts the good jobs among those that arrive after the first tenth of the trace, per
second of their arrivals; all jobs weigh the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.schedule_trace import Job
from benchmarks.schedule_world import MIDDLE, Run
from metamusesd.job import Priority

WARM_UP = 0.1  # of the trace
VERY_LATE = 3.0  # times its limit to the first token: a job that was starved


@dataclass(frozen=True, slots=True)
class Goal:
    """The limits of one class."""

    ttft_s: float
    factor: float

    def first_s(self, job: Job) -> float:
        return self.ttft_s + job.prompt_tokens / MIDDLE.prefill_hz

    def end_s(self, job: Job) -> float:
        return self.ttft_s + self.factor * MIDDLE.alone_s(job)


GOALS = {
    Priority.LOW: Goal(60.0, 10.0),
    Priority.NORMAL: Goal(5.0, 5.0),
    Priority.HIGH: Goal(2.0, 4.0),
    Priority.CRITICAL: Goal(1.0, 3.0),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one policy made of one trace. Seconds by class: quantiles 0.5 and 0.99."""

    goodput_hz: float
    good: float  # share
    ttft_s: dict[Priority, tuple[float, float]]
    e2e_s: dict[Priority, tuple[float, float]]
    good_by_class: dict[Priority, float]
    longest_low_s: float  # to its first token
    very_late_low: float  # share


def is_good(run: Run) -> bool:
    """It kept both limits of its class."""
    goal = GOALS[run.job.priority]
    return run.ttft_s <= goal.first_s(run.job) and run.e2e_s <= goal.end_s(run.job)


def outcome(runs: Sequence[Run]) -> Outcome:
    """The figures of a finished replay."""
    end_s = runs[-1].job.at_s
    counted = [run for run in runs if run.job.at_s >= WARM_UP * end_s]
    by_class = {goal: [run for run in counted if run.job.priority == goal] for goal in Priority}
    present = {priority: mine for priority, mine in by_class.items() if mine}
    low = [run for run in by_class[Priority.LOW] if run.ttft_s > VERY_LATE * GOALS[Priority.LOW].first_s(run.job)]
    good = sum(map(is_good, counted))
    return Outcome(
        goodput_hz=good / ((1 - WARM_UP) * end_s),
        good=good / len(counted),
        ttft_s={priority: _ends([run.ttft_s for run in mine]) for priority, mine in present.items()},
        e2e_s={priority: _ends([run.e2e_s for run in mine]) for priority, mine in present.items()},
        good_by_class={priority: sum(map(is_good, mine)) / len(mine) for priority, mine in present.items()},
        longest_low_s=max((run.ttft_s for run in by_class[Priority.LOW]), default=0.0),
        very_late_low=len(low) / max(1, len(by_class[Priority.LOW])),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The measured value that `share` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return quantile(values, 0.5), quantile(values, 0.99)
