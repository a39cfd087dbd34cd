"""Schedule benchmark · bench process · model workers that batch continuously, as processes of a discrete-event world.

A step of b streams takes base_s + each_s · b and gives each of them one token, so that a batch's throughput grows and
each stream slows down. Prompts are computed one after another, higher classes first, at `prefill_hz` tokens/s;
beside streams a prompt gets 1.2 of 2.2 parts of the time and the streams the rest. Between two changes all that is
constant, so only the changes are events (processor sharing), not the tokens. Who runs is what the llama.cpp engine's
own `runnable` says: whoever is below the highest class that is there yields, each for `yield_limit_s` at most.

Not modelled: the network, prefix caches (the prompts count as what is left to compute), the limit of the KV cache.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import simpy

from benchmarks.schedule_trace import Job
from metamusesd.config import Model
from metamusesd.engines.llamacpp.batch import View, runnable

PREFILL_PARTS = 1.2  # to one part for the streams, while both are there
MEMORY = 0.8  # what a measured rate keeps of itself a step, as in engines/llamacpp/rates.py
NEARLY_S = 1e-9  # sums of floating-point times are wrong by less: who has less than this to do has nothing to do
YIELD_LIMIT_S = Model().yield_limit_s  # who has yielded for so long does so no more


@dataclass(frozen=True, slots=True)
class Kind:
    """A worker's hardware: seconds of a decode step, tokens/s of prefill, slots and reserve."""

    name: str
    base_s: float
    each_s: float
    prefill_hz: float
    slots: int
    reserve_slots: int

    def step_s(self, streams: int) -> float:
        return self.base_s + self.each_s * streams

    def jobs_hz(self, prompt_tokens: float, output_tokens: float) -> float:
        """Jobs/s of such mean lengths that it can do at most: every slot decoding, prompts taking their time off."""
        return 1 / (prompt_tokens / self.prefill_hz + output_tokens * self.step_s(self.slots) / self.slots)

    def alone_s(self, job: Job) -> float:
        """How long the job takes on this worker when nobody else is there."""
        return job.prompt_tokens / self.prefill_hz + (job.output_tokens - 1) * self.step_s(1)


SMALL = Kind("small", 0.025, 0.005, 600.0, 4, 2)
MIDDLE = Kind("middle", 0.020, 0.002, 2000.0, 8, 4)
LARGE = Kind("large", 0.012, 0.001, 6000.0, 16, 8)
MIX = (SMALL, MIDDLE, MIDDLE, LARGE)


@dataclass(slots=True, eq=False)
class Run:
    """A job on its way through the world. Times are -1 until they are known."""

    job: Job
    standing: int = 0
    prompt_left: float = 0.0
    left: float = 0.0  # tokens to decode
    claimed_s: float = -1.0
    first_s: float = -1.0
    done_s: float = -1.0
    yielded_s: float = 0.0
    immune: bool = False
    order: int = 0

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.job.at_s

    @property
    def e2e_s(self) -> float:
        return self.done_s - self.job.at_s


@dataclass(eq=False)
class Worker:
    """One model process. `took_first` and `freed` are told after the event, when the worker has its new plan."""

    env: simpy.Environment
    kind: Kind
    number: int
    took_first: Callable[[Worker, Run], None]
    freed: Callable[[Worker, Run], None]
    yield_limit_s: float = YIELD_LIMIT_S
    held: list[Run] = field(default_factory=list)
    backlog: deque[Run] = field(default_factory=deque)  # only of balancers: what it has accepted and not begun
    decode_rate: float = 0.0  # tokens/s over all streams, moving average, as the board shows it
    _order: int = 0
    _epoch: int = 0
    _at_s: float = 0.0
    _prompt: Run | None = None
    _streams: list[Run] = field(default_factory=list)
    _yielding: list[Run] = field(default_factory=list)
    _stream_hz: float = 0.0  # of each stream
    _prompt_hz: float = 0.0

    def take(self, run: Run) -> None:
        """It is in the batch from now on."""
        self.advance()
        self._order += 1
        run.order, run.claimed_s = self._order, self.env.now
        run.prompt_left, run.left = run.job.prompt_tokens, run.job.output_tokens - 1
        self.held.append(run)
        self._plan()

    def advance(self) -> None:
        """Let the work done since the last change be seen."""
        spent_s = self.env.now - self._at_s
        self._at_s = self.env.now
        if spent_s <= 0:
            return
        if self._prompt is not None:
            self._prompt.prompt_left -= spent_s * self._prompt_hz
        done = spent_s * self._stream_hz
        for run in self._streams:
            run.left -= done
        if self._streams and self._prompt is None:
            keep = MEMORY**done
            self.decode_rate = keep * self.decode_rate + (1 - keep) * self._stream_hz * len(self._streams)
        self._note_yields(spent_s)

    def _note_yields(self, spent_s: float) -> None:
        for run in self._yielding:
            run.yielded_s += spent_s
            run.immune = run.immune or run.yielded_s >= self.yield_limit_s - NEARLY_S

    def _chosen(self) -> list[Run]:
        if len(self.held) <= self.kind.slots and len({run.standing for run in self.held}) < 2:
            return self.held
        views = [View(run.order, run.standing, run.order, 1, run.immune) for run in self.held]
        keys = {view.key for view in runnable(views, self.kind.slots)}
        return [run for run in self.held if run.order in keys]

    def _plan(self) -> None:
        """Who runs, how quickly, and when the next of them has finished something."""
        chosen = self._chosen()
        prompts = [run for run in chosen if run.prompt_left > 0]
        self._prompt = min(prompts, key=lambda run: (-run.standing, run.order), default=None)
        self._streams = [run for run in chosen if run.prompt_left <= 0]
        both = self._prompt is not None and self._streams
        part = PREFILL_PARTS / (1 + PREFILL_PARTS) if both else 1.0
        self._prompt_hz = self.kind.prefill_hz * part
        self._stream_hz = (1 - part if both else 1.0) / self.kind.step_s(len(self._streams))
        wait_s = math.inf
        if self._prompt is not None:
            wait_s = self._prompt.prompt_left / self._prompt_hz
        if self._streams:
            wait_s = min(wait_s, max(0.0, min(run.left for run in self._streams)) / self._stream_hz)
        self._yielding = [run for run in self.held if run not in chosen] if len(chosen) < len(self.held) else []
        waits_s = [self.yield_limit_s - run.yielded_s for run in self._yielding if not run.immune]
        wait_s = min([wait_s, *(max(0.001, left_s) for left_s in waits_s)])
        self._epoch += 1
        if wait_s < math.inf:
            epoch = self._epoch
            timer = self.env.timeout(wait_s)
            timer.callbacks.append(lambda _: self._due(epoch))

    def _due(self, epoch: int) -> None:
        """A timer rang; an old one says nothing."""
        if epoch != self._epoch:
            return
        self.advance()
        ended = [run for run in self._streams if run.left <= NEARLY_S * self._stream_hz]
        first = self._prompt
        if first is not None and first.prompt_left > NEARLY_S * self._prompt_hz:
            first = None
        if first is not None:
            first.first_s, first.prompt_left = self.env.now, 0.0
            ended += [first] if first.left <= 0 else []
        for run in ended:
            run.done_s = self.env.now
            self.held.remove(run)
        self._plan()
        if first is not None:
            self.took_first(self, first)
        for run in ended:
            self.freed(self, run)


def cluster(workers: int) -> list[Kind]:
    """So many workers, a quarter of them small, half middle, a quarter large."""
    return [MIX[number % len(MIX)] for number in range(workers)]


def capacity_hz(kinds: Sequence[Kind], prompt_tokens: float, output_tokens: float) -> float:
    """Jobs/s of these mean lengths that the cluster can do with every slot of every worker busy: 100 % load."""
    return sum(kind.jobs_hz(prompt_tokens, output_tokens) for kind in kinds)
