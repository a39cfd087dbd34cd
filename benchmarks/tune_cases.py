"""Tune benchmark · bench process · one function a case; each adds its rows to the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.report import absolute, compare
from benchmarks.tune import Bench, Side, Task
from benchmarks.tune_child import Work

STEPS, LONG, PROMPT = 48, 2048, 512  # tokens of a stream; that stand before; of a prompt
CROWD, CROWDED = 8, 384  # streams, and what each has before: 3 072 tokens in all
BATCHES = (64, 128, 256, 1024)  # beside 512
GUESSES = (2, 4, 8)
CHUNKS = (64, 16, 63, 128)  # the others beside the first


def kv(bench: Bench) -> None:
    """8 bit beside 16, with flash attention, which 8 bit wants."""
    bench.race([bench.one("f16"), bench.one("q8_0", kv="q8_0")], _attention(bench))


def flash(bench: Bench) -> None:
    """Plain beside flash attention, KV in 16 bit."""
    bench.race([bench.one("flash"), bench.one("plain", flash=False)], _attention(bench))


def batch(bench: Bench) -> None:
    """A long prompt in chunks of 64, which is what the engine makes of it on a core, so that only the batch's memory
    differs; and in chunks as large as the batch."""
    tokens = 256 if bench.quick else 1024
    sides = [bench.one("512"), *(bench.one(str(size), batch=size) for size in BATCHES)]
    whole = Task(f"a prompt of {tokens} in chunks as large as the batch", Work(tokens=tokens, chunk=0))
    bench.race(sides, [_streams(bench, 1, 64), _prompt(tokens, 64, 0), whole])


def threads(bench: Bench) -> None:
    """Two cores: a worker of one thread on each; one of two; one that has two for prompts or for tokens alone."""
    both = bench.cores[:2]
    if len(both) < 2:
        bench.report.notes.append("threads: one core is not enough for that case")
        return
    sides = [
        Side("two workers, a thread each", tuple(bench.knobs(cores=(core,)) for core in both)),
        Side("one worker, two threads", (bench.knobs(cores=both, threads=2),)),
        Side("one worker, two threads for prompts alone", (bench.knobs(cores=both, threads=1, prompt_threads=2),)),
        Side("one worker, two threads for tokens alone", (bench.knobs(cores=both, threads=2, prompt_threads=1),)),
    ]
    bench.race(sides, [*_usual(bench), _streams(bench, 16, 64), _prompt(PROMPT, 64, 0, prompts=2)])


def openmp(bench: Bench) -> None:
    """One worker of two threads, which meet at a barrier behind every operation of the graph."""
    both = bench.cores[:2]
    worker = (bench.knobs(cores=both, threads=len(both)),)
    sides = [
        Side("as it comes", worker),
        Side("OMP_WAIT_POLICY=active", worker, {"OMP_WAIT_POLICY": "active"}),
        Side("OMP_WAIT_POLICY=passive", worker, {"OMP_WAIT_POLICY": "passive"}),
        Side("OMP_PROC_BIND=true", worker, {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}),
    ]
    bench.race(sides, _usual(bench))


def verify(bench: Bench) -> None:
    """A stream that guesses k - 1 tokens computes k at once."""
    steps = 4 if bench.quick else STEPS
    for past in (64, 1024):
        works = [Work(tokens=count, chunk=count, past=past, steps=steps, verify=True) for count in (1, *GUESSES)]
        rounds = bench.times_s(bench.one("1"), works)
        for place, count in enumerate(GUESSES, 1):
            case = f"{count} tokens in a step, {past} before"
            pairs = [(turn[place] / steps * 1000, turn[0] / steps * 1000) for turn in rounds]
            row = compare("step", case, "ms", pairs, against="a step of one token")
            share = pays_from(row.ratio or 0.0, count)
            bench.report.rows += [row, absolute("pays from right guesses of", case, "share", [share])]


def cost(bench: Bench) -> None:
    """What a token costs by the width of its batch: of few streams beside eight, of a prompt in chunks beside 64."""
    narrow = [_streams(bench, streams, 64) for streams in (CROWD, CROWD // 2, 1)]
    _beside(bench, narrow)
    for past in (0, 256 if bench.quick else LONG):
        _beside(bench, [_prompt(size * max(1, 128 // size), size, past) for size in CHUNKS])


def _beside(bench: Bench, tasks: Sequence[Task]) -> None:
    """The others beside the first one, all by one side."""
    rounds = bench.times_s(bench.one("1"), [task.work for task in tasks])
    each_ms = [[1000 * time_s / task.tokens for time_s, task in zip(turn, tasks, strict=True)] for turn in rounds]
    for place, task in enumerate(tasks[1:], 1):
        pairs = [(turn[place], turn[0]) for turn in each_ms]
        bench.report.rows.append(compare("a token", task.name, "ms", pairs, against=tasks[0].name))


def pays_from(cost: float, count: int) -> float | None:
    """From which share of right guesses a step of `count` tokens, `cost` times as dear as one of a token, gives more
    tokens in the time. One is certain, each further one comes if all guesses before it were right. None: never."""
    if cost >= count:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        enough = sum(middle**place for place in range(count)) >= cost
        low, high = (low, middle) if enough else (middle, high)
    return high


def _attention(bench: Bench) -> list[Task]:
    """What attention has a share in: few and many tokens before."""
    long, crowded = (256, 64) if bench.quick else (LONG, CROWDED)
    return [
        *_usual(bench),
        _prompt(PROMPT // (4 if bench.quick else 1), 16, 0),
        _streams(bench, 1, long),
        _prompt(128, 64, long),
        _prompt(128, 16, long),
        _streams(bench, CROWD, crowded),
    ]


def _usual(bench: Bench) -> list[Task]:
    """One stream and eight after short prompts, and a prompt."""
    prompt = _prompt(PROMPT // (4 if bench.quick else 1), 64, 0)
    return [_streams(bench, 1, 64), _streams(bench, CROWD, 64), prompt]


def _streams(bench: Bench, streams: int, past: int) -> Task:
    steps = 4 if bench.quick else STEPS if streams == 1 else STEPS // 2
    return Task(
        f"{streams} stream{'s' * (streams > 1)}, {past} tokens before", Work(streams=streams, past=past, steps=steps)
    )


def _prompt(tokens: int, chunk: int, past: int, prompts: int = 1) -> Task:
    count = "a prompt" if prompts == 1 else f"{prompts} prompts"
    name = f"{count} of {tokens} in chunks of {chunk}, {past} tokens before"
    return Task(name, Work(tokens=tokens, chunk=chunk, past=past), prompts)


CASES: dict[str, Callable[[Bench], None]] = {
    "kv": kv,
    "flash": flash,
    "batch": batch,
    "threads": threads,
    "openmp": openmp,
    "verify": verify,
    "cost": cost,
}
