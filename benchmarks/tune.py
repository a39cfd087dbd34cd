"""Tune benchmark · bench process · the llamacpp engine's own knobs on a CPU: which way of turning them gains what?

    kv       K and V in 8 bit beside 16: decode with short and long contexts, prompts, memory
    flash    flash attention beside plain
    batch    the size of a batch, and with it of a prompt's chunk: prompts, memory
    threads  the same cores as two workers of a thread, or as one of two; other threads for prompts than for tokens
    openmp   how the threads of one worker wait for each other
    cost     a token in narrow and wide batches: streams, a prompt's chunks behind nothing and behind a long context
    verify   k tokens of one stream in one step beside k steps: what guessing ahead costs, and from when it would pay

Every side is a process of its own (tune_child.py) that computes with the engine's Model and Context, pinned, and
stopped while another is at work. Sides take turns at each piece of work, and their order turns round by round. Where
every side is one thread, its processor time is what counts, and not what others do on its core; elsewhere the quickest
of three tries.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from benchmarks.report import Report, compare
from benchmarks.tune_child import Knobs, Work, plain

MODEL = Path(__file__).parent.parent / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
TRIES = 3
CHILD = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "benchmarks.tune_child"]


@dataclass(frozen=True)
class Side:
    """One way of turning the knobs: a worker, or several that share the streams."""

    name: str
    workers: tuple[Knobs, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def single(self) -> bool:
        """Whether one thread does it all."""
        return len(self.workers) == 1 and max(self.workers[0].threads, self.workers[0].prompt_threads) == 1


@dataclass(frozen=True)
class Task:
    """What is measured, under the name that it has in rows. `prompts`: so many of them, where it is no decoding."""

    name: str
    work: Work
    prompts: int = 1

    @property
    def tokens(self) -> int:
        """That are computed in all."""
        return self.work.steps * (self.work.streams or self.work.tokens * self.prompts)

    def shares(self, workers: int) -> list[list[Work]]:
        """What each worker does, one thing after the other: streams are dealt out evenly, prompts in turn."""
        if not self.work.streams:
            return [[self.work] * len(range(place, self.prompts, workers)) for place in range(workers)]
        dealt = [len(range(place, self.work.streams, workers)) for place in range(workers)]
        return [[_with(self.work, streams)] if streams else [] for streams in dealt]


@dataclass
class Bench:
    """What the cases share."""

    model: Path
    cores: tuple[int, ...]
    rounds: int
    quick: bool
    report: Report

    def knobs(self, **turned: object) -> Knobs:
        """A worker of one thread on the first core, as the engine makes it, but for what is turned."""
        values: dict[str, object] = {"model": str(self.model), "cores": self.cores[:1]}
        return Knobs(**(values | turned))  # type: ignore[arg-type]

    def one(self, name: str, **turned: object) -> Side:
        """A side of one such worker."""
        return Side(name, (self.knobs(**turned),))

    def race(self, sides: Sequence[Side], tasks: Sequence[Task]) -> None:
        """Rates of every side beside the first one, and the memory that each has of its own at the end."""
        clock = "computed_s" if all(side.single for side in sides) else "took_s"
        with ExitStack() as stack:
            teams = [stack.enter_context(_team(side)) for side in sides]
            for task in tasks:
                rates = [self._round(teams, task, turn, clock) for turn in range(self.rounds)]
                self._add("rate", task.name, "tok/s", sides, rates)
                print(f"  {task.name}", flush=True)
            memory = [[sum(child.own_mib() for child in team) for team in teams]]
        self._add("memory of its own", "at the end", "MiB", sides, memory)

    def times_s(self, side: Side, works: Sequence[Work]) -> list[list[float]]:
        """How long each piece takes, round by round, one side alone."""
        rounds = []
        with _team(side) as (child,):
            for _ in range(self.rounds):
                times_s = []
                for work in works:
                    child.ask(plain(work))
                    times_s.append(child.hear()["computed_s"])
                rounds.append(times_s)
        return rounds

    def _round(self, teams: Sequence[list[Child]], task: Task, turn: int, clock: str) -> list[float]:
        rates = [0.0] * len(teams)
        for place in range(len(teams)) if turn % 2 == 0 else reversed(range(len(teams))):
            rates[place] = task.tokens / _seconds(teams[place], task, clock)
        return rates

    def _add(self, metric: str, case: str, unit: str, sides: Sequence[Side], rounds: list[list[float]]) -> None:
        first = sides[0].name
        for place, side in enumerate(sides[1:], 1):
            pairs = [(turn[place], turn[0]) for turn in rounds]
            self.report.rows.append(compare(metric, f"{case}: {side.name}", unit, pairs, against=first))


class Child:
    """A process that computes when it is asked to, and is stopped at all other times."""

    def __init__(self, knobs: Knobs, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in: IO[str] = self._process.stdin
        self._out: IO[str] = self._process.stdout
        self.ask(plain(knobs))
        self.hear()

    def ask(self, line: str) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._in.write(line + "\n")
        self._in.flush()

    def hear(self) -> dict[str, float]:
        """The answer. Threads that spin while they wait would take the core from the next side: they are stopped."""
        line = self._out.readline()
        if not line:
            raise SystemExit("tune: a process ended before its work; see above")
        self._process.send_signal(signal.SIGSTOP)
        answer: dict[str, float] = json.loads(line)
        return answer

    def own_mib(self) -> float:
        self.ask('"memory"')
        return self.hear()["own_mib"]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def _team(side: Side) -> Iterator[list[Child]]:
    children: list[Child] = []
    try:
        for knobs in side.workers:
            children.append(Child(knobs, side.environment))
        yield children
    finally:
        for child in children:
            child.end()


def _seconds(team: Sequence[Child], task: Task, clock: str) -> float:
    """By the clock the quickest of some tries counts: a busy neighbour only ever makes one slower."""
    return min(_once(team, task, clock) for _ in range(1 if clock == "computed_s" else TRIES))


def _once(team: Sequence[Child], task: Task, clock: str) -> float:
    """Of the one that takes longest. Every worker has one thing at a time."""
    piles = task.shares(len(team))
    spent_s = [0.0] * len(team)
    while any(piles):
        busy = [place for place, pile in enumerate(piles) if pile]
        for place in busy:
            team[place].ask(plain(piles[place].pop()))
        for place in busy:
            spent_s[place] += team[place].hear()[clock]
    return max(spent_s)


def _with(work: Work, streams: int) -> Work:
    return Work(streams=streams, past=work.past, steps=work.steps)


def run(options: argparse.Namespace) -> Report:
    """All cases, or those named by --case."""
    from benchmarks.tune_cases import CASES

    model = options.model or MODEL
    if not model.is_file():
        raise SystemExit(f"tune: {model} is missing: `make models` fetches it, or name one with --model")
    report = Report(benchmark="tune", command=options.command)
    cores = tuple(sorted(map(int, options.cores.split(","))) if options.cores else sorted(os.sched_getaffinity(0)))
    rounds = options.rounds or (1 if options.quick else 5)
    report.notes = [f"{model.name}, cores {list(cores)}, {rounds} alternating rounds, medians"]
    bench = Bench(model.absolute(), cores, rounds, options.quick, report)
    for name in options.case or CASES:
        if name not in CASES:
            raise SystemExit(f"tune: there is no case {name!r}; use one of {', '.join(CASES)}")
        print(f"case {name} …", flush=True)
        case: Callable[[Bench], None] = CASES[name]
        case(bench)
        if options.json:  # after every case, so that a run that is cut short has not been in vain
            report.write(options.json)
    return report
