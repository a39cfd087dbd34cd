"""Schedule benchmark · bench process · our scheduling against load balancers and an oracle, in a simulated cluster.

    goodput     jobs/s that keep the goals of their class, at 50 to 110 % load   (goals: schedule_goals.py)
    tails       p50 and p99 of TTFT and of the whole, by class, at 90 % load
    starvation  how long low jobs wait, at 90 and 110 % load
    cost        the wall time of one `place` and one `wants`, by the number of workers
    picture     goodput over load, into docs/scheduling.svg; only when asked for

100 % load: jobs of the trace's own mean lengths arrive as quickly as the cluster can do them with every slot of every
worker busy (schedule_world.py, capacity_hz). A round is a seed: all policies replay the same jobs.
`--data FILE` replays a recorded trace (schedule_trace.py draws its lines), with its pattern, stretched to each load.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import schedule_picture
from benchmarks.report import Report, Row, absolute, compare
from benchmarks.schedule_goals import Outcome, outcome
from benchmarks.schedule_policies import ORACLES, YARDSTICKS, Ours, Patient, Policy, Unlearnt, simulate
from benchmarks.schedule_trace import ARRIVALS, TIER, Job, means, recorded, stretched, synthetic, timed
from benchmarks.schedule_world import capacity_hz, cluster
from metamusesd.dispatcher.places import Option, Order, place
from metamusesd.dispatcher.scheduler import WorkerLoad, wants
from metamusesd.job import Priority

CASES = ("goodput", "tails", "starvation", "cost")
LOADS, JUDGED, OVERLOAD = (0.5, 0.7, 0.9, 1.1), 0.9, 1.1
WORKERS, USUAL_WORKERS = (4, 16, 64), 16
JOBS_A_WORKER, MOST_JOBS, QUICK_JOBS = 240, 7_000, 600
ROUNDS = 3
OURS, ORACLE, LEAST, WEIGHTED = "ours", "oracle", "least-connections", "least-connections by slots"
BARS = {LEAST: ">= 1.2", ORACLE: ">= 0.9"}
VARIANTS: dict[str, type[Policy]] = {
    OURS: Ours,
    "ours without learnt lengths": Unlearnt,
    "ours, yielding for 10 s": Patient,
}
COST_WORKERS, QUICK_COST_WORKERS = (4, 16, 64, 1_000, 10_000), (4, 1_000)
COST_S = 0.2  # spent on each figure


@dataclass(frozen=True, slots=True)
class Scene:
    """One cluster, one pattern of arrivals, one load."""

    workers: int
    arrivals: str
    load: float

    def __str__(self) -> str:
        return f"{self.arrivals}, {self.load:.0%} load, {self.workers} workers"


@dataclass
class Sweep:
    """Replays, each made once, when its outcome is first asked for."""

    seeds: Sequence[int]
    jobs_a_worker: int = JOBS_A_WORKER
    most_jobs: int = MOST_JOBS
    given: Sequence[Job] | None = None  # a recorded trace
    _known: dict[tuple[Scene, str, int], Outcome] = field(default_factory=dict)

    def outcomes(self, scene: Scene, policy: str) -> list[Outcome]:
        """One a seed."""
        return [self._outcome(scene, policy, seed) for seed in self.seeds]

    def _outcome(self, scene: Scene, policy: str, seed: int) -> Outcome:
        key = scene, policy, seed
        if key not in self._known:
            if policy == ORACLE:
                tried = [self._outcome(scene, name, seed) for name in ORACLES]
                self._known[key] = max(tried, key=lambda each: each.goodput_hz)
            else:
                chosen = (YARDSTICKS | VARIANTS | ORACLES)[policy]
                self._known[key] = outcome(simulate(chosen, self._trace(scene, seed), cluster(scene.workers), seed))
        return self._known[key]

    def _trace(self, scene: Scene, seed: int) -> list[Job]:
        count = min(self.jobs_a_worker * scene.workers, self.most_jobs)
        jobs = list(self.given) if self.given is not None else synthetic(count, seed)
        rate_hz = scene.load * capacity_hz(cluster(scene.workers), *means(jobs))
        return stretched(jobs, rate_hz) if self.given is not None else timed(jobs, scene.arrivals, rate_hz, seed)


def run(args: argparse.Namespace) -> Report:
    """The cases that are asked for."""
    report = Report(benchmark="schedule", command=args.command)
    cases = args.case or CASES
    if unknown := set(cases) - {*CASES, "picture"}:
        raise SystemExit(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join((*CASES, 'picture'))}")
    first = args.seed if args.seed is not None else 1
    rounds = args.rounds or (1 if args.quick else ROUNDS)
    sweep = Sweep(range(first, first + rounds), given=recorded(args.data) if args.data else None)
    sweep.most_jobs = QUICK_JOBS if args.quick else MOST_JOBS
    kinds = ("recorded",) if args.data else ARRIVALS
    if "goodput" in cases or "picture" in cases:
        report.rows += _goodput(sweep, kinds, args.quick)
    usual = [Scene(4 if args.quick else USUAL_WORKERS, arrivals, JUDGED) for arrivals in kinds]
    for scene in usual if "tails" in cases else ():
        report.rows += _tails(sweep, scene)
    for scene in usual if "starvation" in cases else ():
        report.rows += [*_starvation(sweep, scene), *_starvation(sweep, Scene(scene.workers, scene.arrivals, OVERLOAD))]
    if "cost" in cases:
        report.rows += _cost(args.quick, rounds)
    if "picture" in cases:
        report.notes.append(_picture(report.rows, args.quick or args.data is not None))
    report.notes += _notes(sweep)
    return report


def _goodput(sweep: Sweep, kinds: Sequence[str], quick: bool) -> list[Row]:
    """Ours beside everybody; all loads on the usual cluster, the judged load on the others."""
    sizes = (4,) if quick else WORKERS
    scenes = [Scene(workers, arrivals, load) for workers in sizes for arrivals in kinds for load in LOADS
              if load == JUDGED or workers == USUAL_WORKERS]  # fmt: skip
    variants = [name for name in VARIANTS if name != OURS]
    rows = []
    for scene in scenes:
        ours = [each.goodput_hz for each in sweep.outcomes(scene, OURS)]
        rows.append(absolute("good share", str(scene), "of all", [e.good for e in sweep.outcomes(scene, OURS)]))
        for other in [*YARDSTICKS, *(variants if scene.workers == USUAL_WORKERS or quick else ()), ORACLE]:
            theirs = [each.goodput_hz for each in sweep.outcomes(scene, other)]
            bar = BARS.get(other) if scene.load == JUDGED else None
            pairs = list(zip(ours, theirs, strict=True))
            rows.append(compare("goodput", str(scene), "good jobs/s", pairs, against=other, bar=bar))
    return rows


def _tails(sweep: Sweep, scene: Scene) -> list[Row]:
    """The waits of each class, beside the stronger of the usual balancers. Less is better."""
    rows = []
    for priority in reversed(Priority):
        name = priority.name.lower()
        for number, metric in enumerate(("TTFT p50", "TTFT p99", "whole p50", "whole p99")):
            rows.append(_beside(sweep, scene, f"{name}: {metric}", "s", partial(_tail, priority, number)))
    return rows


def _tail(priority: Priority, number: int, each: Outcome) -> float | None:
    """None: the trace has no job of this class."""
    return (*each.ttft_s[priority], *each.e2e_s[priority])[number] if priority in each.ttft_s else None


def _starvation(sweep: Sweep, scene: Scene) -> list[Row]:
    """What low jobs pay. Less is better."""
    return [
        _beside(sweep, scene, "low: longest TTFT", "s", lambda each: each.longest_low_s),
        _beside(sweep, scene, "low: TTFT over 3 limits", "of low", lambda each: each.very_late_low),
    ]


def _beside(
    sweep: Sweep, scene: Scene, metric: str, unit: str, figure: Callable[[Outcome], float | None], other: str = WEIGHTED
) -> Row:
    pairs = [(figure(mine), figure(theirs)) for mine, theirs in
             zip(sweep.outcomes(scene, OURS), sweep.outcomes(scene, other), strict=True)]  # fmt: skip
    return compare(metric, str(scene), unit, pairs, against=other)


def _cost(quick: bool, rounds: int) -> list[Row]:
    """One decision over so many workers, half of them full."""
    rows = []
    for count in QUICK_COST_WORKERS if quick else COST_WORKERS:
        dice = random.Random(count)
        loads = [WorkerLoad(8, 4, [dice.randrange(4) for _ in Priority], 500, 800.0, 200.0) for _ in range(count)]
        order = Order(Priority.NORMAL, 400, {TIER: 200.0}, TIER, 0.0)
        calls: dict[str, Callable[[], object]] = {
            "place": partial(place, [Option("w", TIER, load) for load in loads], order),
            "wants": partial(wants, {TIER: loads}),
        }
        for name, call in calls.items():
            times_us = [_timed_us(call) for _ in range(rounds)]
            rows.append(absolute(f"one {name}", f"{count:,} workers", "µs", times_us))
    return rows


def _timed_us(call: Callable[[], object]) -> float:
    """The quickest of the calls that fit into the time: what the call costs, and not the machine's other work."""
    best_s, until_s = float("inf"), time.perf_counter() + COST_S
    while (begun_s := time.perf_counter()) < until_s:
        call()
        best_s = min(best_s, time.perf_counter() - begun_s)
    return best_s * 1e6


def _picture(rows: Sequence[Row], small: bool) -> str:
    if small:
        return "picture: not drawn; docs/scheduling.svg is made of a full run of synthetic traces"
    path = Path(__file__).parent.parent / "docs" / "scheduling.svg"
    schedule_picture.draw(path, [row for row in rows if row.case.endswith(f" {USUAL_WORKERS} workers")])
    return f"picture: {path.name}"


def _notes(sweep: Sweep) -> list[str]:
    return [
        f"Simulated, seeds {sweep.seeds[0]} to {sweep.seeds[-1]}; the machine matters for `cost` only. Workers: a "
        "quarter small, half middle, a quarter large (schedule_world.py); goals in schedule_goals.py.",
        "ours: the real `wants`, `place` and Lengths, on workers that yield by the real engines/llamacpp/batch.py. "
        "`ours, yielding for 10 s`: the same with the yield_limit_s of before.",
        f"oracle: in each round the best of {', '.join(ORACLES)}.",
    ]
