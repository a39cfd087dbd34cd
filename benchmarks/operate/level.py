"""Operate benchmark · bench process · is it level? The rule by which a day of samples is judged. Pure.

    memory, descriptors   the median of the last quarter is at most GROWTH times that of the second quarter, plus SLACK;
                          the second one begins after the day's first peak, so that both have had theirs. Memory is what
                          is no file's: a file's pages are shared with whoever else maps them now
    the same, slope       a straight line through the last two thirds rises by no more than that over a whole day
    Redis                 at rest after the day, when all results have expired, against at rest before it: keys other
                          than answers that the cache keeps, and memory

A process that was replaced (a kill) begins anew: only samples of the pid that lived at the end count, and one that has
not lived through half of the day is not judged.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.operate.watch import Sample

GROWTH = 1.10
SLACK_MB, SLACK_FDS, SLACK_KEYS, SLACK_REDIS_MB = 4.0, 4, 20, 2.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one series. `early` and `late`: the medians; `a_day`: what the line rises by in as long as the day took."""

    name: str
    early: float
    late: float
    a_day: float
    allowed: float

    @property
    def level(self) -> bool:
        """By the rule above."""
        return self.late <= self.allowed and self.early + self.a_day <= self.allowed


def memory(samples: Sequence[Sample], name: str) -> Verdict | None:
    """Of one process. None: it was replaced too late to say."""
    lived = _lived(samples, name)
    return _judge(name, [(each.at_s, each.own_mb[name]) for each in lived], samples[-1].at_s, SLACK_MB)


def descriptors(samples: Sequence[Sample], name: str) -> Verdict | None:
    """Of one process. None: it was replaced too late to say."""
    lived = _lived(samples, name)
    return _judge(name, [(each.at_s, float(each.fds[name])) for each in lived], samples[-1].at_s, SLACK_FDS)


def rests(before: Sample, after: Sample) -> list[Verdict]:
    """Redis before and after the day."""
    keys = (float(before.keys - before.answers), float(after.keys - after.answers))
    sizes = (before.redis_mb, after.redis_mb)
    return [
        Verdict("keys other than kept answers", *keys, 0.0, keys[0] * GROWTH + SLACK_KEYS),
        Verdict("memory of Redis, MiB", *sizes, 0.0, sizes[0] * GROWTH + SLACK_REDIS_MB),
    ]


def _lived(samples: Sequence[Sample], name: str) -> list[Sample]:
    last = next((each.pids[name] for each in reversed(samples) if name in each.pids), 0)
    return [each for each in samples if each.pids.get(name) == last and each.pss_mb.get(name)]


def _judge(name: str, points: Sequence[tuple[float, float]], day_s: float, slack: float) -> Verdict | None:
    """`points`: (time, value). A shorter life is cut into quarters of its own."""
    if len(points) < 8 or points[-1][0] - points[0][0] < day_s / 2:
        return None
    begun_s, life_s = points[0][0], points[-1][0] - points[0][0]
    early = statistics.median(y for x, y in points if begun_s + life_s / 4 <= x <= begun_s + life_s / 2)
    late = statistics.median(y for x, y in points if x >= begun_s + life_s * 3 / 4)
    tail = [(x, y) for x, y in points if x >= begun_s + life_s / 3]
    line = statistics.linear_regression([x for x, _ in tail], [y for _, y in tail])
    return Verdict(name, early, late, line.slope * day_s, early * GROWTH + slack)
