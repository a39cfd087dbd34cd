"""Tune benchmark · a process of its own · one context of llama.cpp with some knobs turned, and how long it computes.

    python -m benchmarks.tune_child < one JSON object a line
        the first: Knobs      → {"own_mib"}
        then any number: Work → {"took_s", "computed_s"}
        "memory"              → {"own_mib"}

`computed_s` is the processor time of the calling thread: what others do on the core does not count.

It computes with the engine's own Model and Context, so a knob that is not turned is as in a worker. Which tokens stand
in the cache makes no difference to the time, so they are drawn.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metamusesd.engines.llamacpp.native import Context

FILL = 512  # tokens: chunks in which what stands in the cache is computed, untimed


@dataclass(frozen=True)
class Knobs:
    """One worker's: where it runs, and how its context is made. `batch`: n_batch, which is n_ubatch as well."""

    model: str
    cores: tuple[int, ...]
    threads: int = 1
    prompt_threads: int = 0  # 0: as many as `threads`
    batch: int = 512
    flash: bool = True
    kv: str = "f16"
    cells: int = 4096
    sequences: int = 16


@dataclass(frozen=True)
class Work:
    """Steps of one kind. `past`: tokens that each of its sequences has before.

    streams > 0: `steps` times one token for each stream; otherwise `steps` times `tokens` of one sequence, in chunks of
    `chunk` (0: as large as the batch), with the logits of the last one, or of all where they are to be verified.
    """

    streams: int = 0
    tokens: int = 0
    chunk: int = 64
    past: int = 0
    steps: int = 1
    verify: bool = False


class Bench:
    """The context, and who holds how much of it."""

    def __init__(self, knobs: Knobs) -> None:
        from metamusesd.engines.base import EngineSpec
        from metamusesd.engines.llamacpp.native import Context, Model

        class Tuned(Context):
            def _params(self, *rest: Any) -> Any:
                params = super()._params(*rest)
                params.n_threads_batch = knobs.prompt_threads or knobs.threads
                return params

        spec = EngineSpec(
            "llamacpp", "tune", knobs.model, threads=knobs.threads, flash_attention=knobs.flash, kv_cache_type=knobs.kv
        )
        self._model = Model(spec)
        self._context: Context = Tuned(self._model, spec, knobs.cells, knobs.sequences, knobs.batch)
        self._sequences, self._limit = knobs.sequences, knobs.batch

    def times(self, work: Work) -> dict[str, float]:
        """Do it. What it leaves behind is taken away before the next one."""
        streams = work.streams or 1
        for sequence in range(self._sequences):
            self._hold(sequence, work.past if sequence < streams else 0)
        begun_s, computed_s = time.perf_counter(), time.thread_time()
        for step in range(work.steps):
            if work.streams:
                self._decode([(sequence, work.past + step) for sequence in range(streams)], all_wanted=True)
            else:
                self._prompt(work)
                self._context.remove(0, work.past)
        return {"took_s": time.perf_counter() - begun_s, "computed_s": time.thread_time() - computed_s}

    def _hold(self, sequence: int, tokens: int) -> None:
        """Make `sequence` so long."""
        there = self._context.length(sequence)
        if there > tokens:
            self._context.remove(sequence, tokens)
        for start in range(there, tokens, min(FILL, self._limit)):
            count = min(FILL, self._limit, tokens - start)
            self._decode([(sequence, start + place) for place in range(count)])

    def _prompt(self, work: Work) -> None:
        end, chunk = work.past + work.tokens, work.chunk or self._limit
        for start in range(work.past, end, chunk):
            places = range(start, min(start + chunk, end))
            self._decode([(0, place) for place in places], all_wanted=work.verify)

    def _decode(self, entries: list[tuple[int, int]], all_wanted: bool = False) -> None:
        """Compute these (sequence, position) in one batch, and look at the logits."""
        context, count = self._context, len(entries)
        context.sequences[:count] = [sequence for sequence, _ in entries]
        context.positions[:count] = [position for _, position in entries]
        context.tokens[:count] = (context.positions[:count] * 7919 + 101) % self._model.vocabulary
        context.wanted[:count] = all_wanted
        context.wanted[count - 1] = 1
        if status := context.decode(count):
            raise SystemExit(f"llama_decode says {status}")
        context.logits()[: count if all_wanted else 1].argmax(axis=1)


def own_mib() -> float:
    """Memory that this process shares with nobody."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def main() -> int:
    """See the module's docstring."""
    given: dict[str, Any] = json.loads(sys.stdin.readline())
    os.sched_setaffinity(0, given["cores"])
    before_mib = own_mib()
    bench = Bench(Knobs(**given))
    print(json.dumps({"own_mib": own_mib() - before_mib}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        told = {"own_mib": own_mib() - before_mib} if asked == "memory" else bench.times(Work(**asked))
        print(json.dumps(told), flush=True)
    return 0


def plain(thing: Knobs | Work) -> str:
    """As it travels."""
    return json.dumps(asdict(thing))


if __name__ == "__main__":
    sys.exit(main())
