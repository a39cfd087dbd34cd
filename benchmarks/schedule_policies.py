"""Schedule benchmark · bench process · who decides which worker gets which job: the yardsticks, ours, and an oracle.

A balancer stands before model servers that know no classes: it gives a job to a worker when it arrives, the worker
keeps it in a FIFO queue of its own until a slot is free. Ours keeps all jobs in one queue a class, claims by the real
`wants` when a worker has room, and places by the real `place`. The oracle is the best of four that know the truth:
how long each answer will be and, two of them, the goals and how quick each worker's steps are.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Protocol

import simpy

from benchmarks.schedule_goals import GOALS
from benchmarks.schedule_trace import TIER, Job
from benchmarks.schedule_world import MIDDLE, PREFILL_PARTS, YIELD_LIMIT_S, Kind, Run, Worker
from metamusesd.config.options import CLASSES as CLASS_OPTIONS
from metamusesd.dispatcher.lengths import Lengths
from metamusesd.dispatcher.places import Option, Order, place
from metamusesd.dispatcher.scheduler import WorkerLoad, wants
from metamusesd.job import Priority

GUESSED_TOKENS = 256  # of an answer of which nothing is known
BOARD_S = 0.1  # how old the rates are that a placement sees, at most
AGED_TURN = 8
PREFILL_SLOWER = (1 + PREFILL_PARTS) / PREFILL_PARTS  # beside streams
FOR_OTHERS = 0.3  # of the seconds that a job costs its neighbours; the oracle that was best with it
MAX_WAIT_S = [CLASS_OPTIONS[priority.name.lower()].max_wait_s for priority in Priority]  # 0: never aged


Waiting = tuple[float, int, Run]


class Learner(Protocol):
    """What a dispatcher expects of answers, in tokens."""

    def expect(self, tier: str, muse: str, max_tokens: int | None) -> float: ...

    def learn(self, tier: str, muse: str, tokens: int) -> None: ...


class NoLengths:
    """max_tokens, or a guess: what the scheduler was told before anybody learnt."""

    def expect(self, tier: str, muse: str, max_tokens: int | None) -> float:
        return max_tokens or GUESSED_TOKENS

    def learn(self, tier: str, muse: str, tokens: int) -> None: ...


class Policy:
    """Base of all: it hears of arrivals, first tokens and free places, and gives runs to workers."""

    yield_limit_s = YIELD_LIMIT_S

    def __init__(self, env: simpy.Environment, kinds: Sequence[Kind], seed: int) -> None:
        self.env, self.dice = env, random.Random(seed)
        self.workers = [Worker(env, kind, number, self.took_first, self.freed, self.yield_limit_s)
                        for number, kind in enumerate(kinds)]  # fmt: skip

    def arrive(self, run: Run) -> None:
        raise NotImplementedError

    def took_first(self, worker: Worker, run: Run) -> None: ...

    def freed(self, worker: Worker, run: Run) -> None: ...


class Balancer(Policy):
    """Assigns at arrival; `choose` says where to."""

    def choose(self, run: Run) -> Worker:
        raise NotImplementedError

    def arrive(self, run: Run) -> None:
        worker = self.choose(run)
        worker.backlog.append(run)
        self._begin(worker)

    def freed(self, worker: Worker, run: Run) -> None:
        self._begin(worker)

    def _begin(self, worker: Worker) -> None:
        while worker.backlog and len(worker.held) < worker.kind.slots:
            worker.take(worker.backlog.popleft())

    def least(self, cost: Callable[[Worker], float], among: Sequence[Worker]) -> Worker:
        """The cheapest; equal ones by lot, else the first of them would be the busiest."""
        return min(among, key=lambda worker: (cost(worker), self.dice.random()))


def connections(worker: Worker) -> float:
    """Jobs running and queued there."""
    return len(worker.held) + len(worker.backlog)


def per_slot(worker: Worker) -> float:
    """The same with the weights that an operator would give: connections a slot, the new one included."""
    return (connections(worker) + 1) / worker.kind.slots


class RoundRobin(Balancer):
    """In turn."""

    _next = -1

    def choose(self, run: Run) -> Worker:
        self._next = (self._next + 1) % len(self.workers)
        return self.workers[self._next]


class Random(Balancer):
    """By lot."""

    def choose(self, run: Run) -> Worker:
        return self.dice.choice(self.workers)


class LeastConnections(Balancer):
    """The fewest jobs running and queued, as reverse proxies do it without weights."""

    def choose(self, run: Run) -> Worker:
        return self.least(connections, self.workers)


class WeightedConnections(Balancer):
    """The fewest jobs a slot: least-connections with the weights set to the slots."""

    def choose(self, run: Run) -> Worker:
        return self.least(per_slot, self.workers)


class ShortestQueue(Balancer):
    """The least unfinished work a slot: tokens of prompts and of max_tokens (or a guess) of all jobs there."""

    def choose(self, run: Run) -> Worker:
        return self.least(_promised_tokens, self.workers)


class TwoChoices(Balancer):
    """Of two workers drawn by lot the one with fewer jobs a slot."""

    def choose(self, run: Run) -> Worker:
        return self.least(per_slot, self.dice.sample(self.workers, min(2, len(self.workers))))


def _promised_tokens(worker: Worker) -> float:
    jobs = [run.job for run in (*worker.held, *worker.backlog)]
    return sum(job.prompt_tokens + (job.max_tokens or GUESSED_TOKENS) for job in jobs) / worker.kind.slots


class Ours(Policy):
    """One queue a class; `wants` says what to claim, `place` where it goes. A job's tier is for the learner alone."""

    lengths: Callable[[], Learner] = Lengths

    def __init__(self, env: simpy.Environment, kinds: Sequence[Kind], seed: int) -> None:
        super().__init__(env, kinds, seed)
        self.loads = [WorkerLoad(kind.slots, kind.reserve_slots, prefill_rate=kind.prefill_hz) for kind in kinds]
        self.options = [Option(str(number), TIER, load) for number, load in enumerate(self.loads)]
        self.queues: list[deque[Run]] = [deque() for _ in Priority]
        self.known = self.lengths()
        self._turn = 0
        env.process(self._board())

    def _board(self) -> Generator[simpy.Event, None, None]:
        """The rates come to the dispatcher now and then."""
        while True:
            yield self.env.timeout(BOARD_S)
            for worker, load in zip(self.workers, self.loads, strict=True):
                if worker.held:
                    worker.advance()
                    load.decode_rate = worker.decode_rate

    def arrive(self, run: Run) -> None:
        run.standing = run.job.priority
        self.enqueue(run)
        self._claim()

    def waits(self) -> bool:
        return any(self.queues)

    def enqueue(self, run: Run) -> None:
        self.queues[run.standing].append(run)

    def took_first(self, worker: Worker, run: Run) -> None:
        self.loads[worker.number].prompt_tokens -= run.job.prompt_tokens

    def freed(self, worker: Worker, run: Run) -> None:
        self.loads[worker.number].by_class[run.standing] -= 1
        self.known.learn(run.job.tier, run.job.muse, run.job.output_tokens)
        self._claim()

    def _claim(self) -> None:
        """As the pump does: what `wants` asks for, from the heads of the queues."""
        if not self.waits():
            return
        for want in wants({TIER: self.loads}):
            for _ in range(want.count):
                if (run := self.head(want.floor)) is None:
                    break
                place = self.place(run)
                assert place is not None, "claimed without room"
                self._send(run, place)

    def head(self, floor: int) -> Run | None:
        """The best job of class `floor` or higher; each eighth turn the most overdue of all."""
        if floor == 0 and any(self.queues):
            self._turn = (self._turn + 1) % AGED_TURN
            if self._turn == 0 and (run := self._most_overdue()) is not None:
                return run
        for queue in reversed(self.queues[floor:]):
            if queue:
                return queue.popleft()
        return None

    def _most_overdue(self) -> Run | None:
        overdue = [(self.env.now - queue[0].job.at_s - most_s, priority)
                   for priority, (queue, most_s) in enumerate(zip(self.queues, MAX_WAIT_S, strict=True))
                   if queue and most_s]  # fmt: skip
        if not overdue or max(overdue)[0] <= 0:
            return None
        run = self.queues[max(overdue)[1]].popleft()
        run.standing, run.immune = len(Priority) - 1, True
        return run

    def _send(self, run: Run, place: int) -> None:
        self.loads[place].by_class[run.standing] += 1
        self.loads[place].prompt_tokens += run.job.prompt_tokens
        self.workers[place].take(run)

    def place(self, run: Run) -> int | None:
        order = Order(run.standing, run.job.prompt_tokens, {TIER: self.tokens(run.job)}, TIER, 0.0)
        placed = place(self.options, order)
        return None if placed is None else placed[0]

    def tokens(self, job: Job) -> float:
        return self.known.expect(job.tier, job.muse, job.max_tokens)


class Unlearnt(Ours):
    """Ours without knowing how long answers are."""

    lengths = NoLengths


class Patient(Ours):
    """Ours on workers whose lower classes yield for ten seconds, as they did before this was simulated."""

    yield_limit_s = 10.0


class Oracle(Ours):
    """Ours with the truth about lengths, and nothing else changed."""

    def tokens(self, job: Job) -> float:
        return job.output_tokens


class ShortestFirst(Oracle):
    """Inside a class the job with the least true work goes first, and not the one that came first."""

    def __init__(self, env: simpy.Environment, kinds: Sequence[Kind], seed: int) -> None:
        super().__init__(env, kinds, seed)
        self.fresh: list[list[Waiting]] = [[] for _ in Priority]

    def waits(self) -> bool:
        return any(self.fresh)

    def enqueue(self, run: Run) -> None:
        heapq.heappush(self.fresh[run.standing], (work_s(run.job), run.job.number, run))

    def head(self, floor: int) -> Run | None:
        return next((heapq.heappop(heap)[2] for heap in reversed(self.fresh[floor:]) if heap), None)


class GoalsFirst(ShortestFirst):
    """The same, but jobs that cannot be good any more go last of all; places are chosen by the true costs of steps,
    with something for what the newcomer costs its neighbours."""

    classes = True

    def __init__(self, env: simpy.Environment, kinds: Sequence[Kind], seed: int) -> None:
        super().__init__(env, kinds, seed)
        self.late: list[list[Waiting]] = [[] for _ in Priority]

    def waits(self) -> bool:
        return any(self.fresh) or any(self.late)

    def head(self, floor: int) -> Run | None:
        for heap, late in zip(self.fresh[floor:], self.late[floor:], strict=True):
            while heap and latest_s(heap[0][2].job) < self.env.now:
                heapq.heappush(late, heapq.heappop(heap))
        for heaps in (self.fresh[floor:], self.late[floor:]):
            if found := [heap for heap in reversed(heaps) if heap]:
                best = found[0] if self.classes else min(found, key=lambda heap: heap[0])
                return heapq.heappop(best)[2]
        return None

    def place(self, run: Run) -> int | None:
        free = [number for number, load in enumerate(self.loads) if load.room(run.standing) > 0]
        return min(free, key=lambda number: self._cost_s(number, run.job), default=None)

    def _cost_s(self, number: int, job: Job) -> float:
        load, kind = self.loads[number], self.workers[number].kind
        there = sum(load.by_class)
        prompt_s = (load.prompt_tokens + job.prompt_tokens) / kind.prefill_hz * (PREFILL_SLOWER if there else 1.0)
        steps_s = job.output_tokens * kind.step_s(min(kind.slots, there + 1))
        felt_s = there * (job.prompt_tokens / kind.prefill_hz + kind.each_s * job.output_tokens)
        return prompt_s + steps_s + FOR_OTHERS * felt_s


class GoalsOnly(GoalsFirst):
    """The same without classes: they matter by their goals alone."""

    classes = False


def work_s(job: Job) -> float:
    """Of a middle worker, in a full batch."""
    return job.prompt_tokens / MIDDLE.prefill_hz + job.output_tokens * MIDDLE.step_s(MIDDLE.slots) / MIDDLE.slots


def latest_s(job: Job) -> float:
    """When the job must begin to be good, roughly: in a full batch of a middle worker."""
    own_s = job.prompt_tokens / MIDDLE.prefill_hz
    whole_s = own_s * PREFILL_SLOWER + job.output_tokens * MIDDLE.step_s(MIDDLE.slots)
    goal = GOALS[job.priority]
    return min(job.at_s + goal.first_s(job) - own_s, job.at_s + goal.end_s(job) - whole_s)


YARDSTICKS: dict[str, type[Policy]] = {
    "round-robin": RoundRobin,
    "random": Random,
    "two choices": TwoChoices,
    "shortest queue": ShortestQueue,
    "least-connections": LeastConnections,
    "least-connections by slots": WeightedConnections,
}
ORACLES: dict[str, type[Policy]] = {
    "true lengths": Oracle,
    "shortest first": ShortestFirst,
    "goals first": GoalsFirst,
    "goals only": GoalsOnly,
}


def simulate(policy: type[Policy], jobs: Sequence[Job], kinds: Sequence[Kind], seed: int) -> list[Run]:
    """Replay the trace until every job is done."""
    env = simpy.Environment()
    chosen = policy(env, kinds, seed)
    runs = [Run(job) for job in jobs]

    def arrivals() -> Generator[simpy.Event, None, None]:
        for run in runs:
            if run.job.at_s > env.now:
                yield env.timeout(run.job.at_s - env.now)
            chosen.arrive(run)

    env.process(arrivals())
    while any(run.done_s < 0 for run in runs):
        env.run(until=env.now + 100.0)
    return runs
