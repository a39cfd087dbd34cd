"""Stage 8 · a process of its own · what one engine does on some cores: its load, its prompts, its streams, its memory.

    python -m metamusesd.engines.measure < {"spec": EngineSpec, "cores": [0], "prompts": [64, 256], "streams": [1, 4]}

One JSON object a line, as soon as it is known: {"load_s"}, {"prompt", "tokens_s"}, {"streams", "tokens_s"}, and at the
end {"rss_bytes", "private_bytes"}. {"problem"} ends it. The same engine, options and threads as in a worker; tokens
include sampling and the making of text, which a benchmark of the kernels leaves out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from metamusesd.engines.base import Engine, EngineSpec, Finished, Task
from metamusesd.engines.choice import make_engine
from metamusesd.errors import MetamusesdError
from metamusesd.job import InferenceRequest, Params, Priority

CASE_S = 3.0  # how long one number of streams may take; a token each is always waited for
ANSWER_TOKENS = 96
WORDS = ("river", "stone", "winter", "letter", "garden", "engine", "window", "thunder", "silver", "market")

Row = dict[str, Any]
_handles = count(1)


def measure(spec: EngineSpec, prompts: Sequence[int], streams: Sequence[int]) -> Iterator[Row]:
    """Load, then everything that fits. Blocks between two rows."""
    begun_s = time.perf_counter()
    engine = make_engine(spec)
    yield {"load_s": time.perf_counter() - begun_s}
    _generate(engine, 1, 8)  # warm: pages, text tables
    for length in prompts:
        if length + 64 < engine.info.context:
            yield {"prompt": length, "tokens_s": _prefill(engine, length)}
    for number in streams:
        if number <= spec.slots:
            yield {"streams": number, "tokens_s": _generate(engine, number, ANSWER_TOKENS)}
    yield _memory()
    engine.close()


def _prefill(engine: Engine, length: int) -> float:
    """Prompt tokens/s that were computed: what the engine still held of an earlier prompt does not count."""
    handle = _admit(engine, length, 1)
    before, begun_s = engine.statistics().prompt_tokens, time.perf_counter()
    while not any(isinstance(event, Finished) and event.handle == handle for event in engine.step()):
        pass
    return (engine.statistics().prompt_tokens - before) / (time.perf_counter() - begun_s)


def _generate(engine: Engine, number: int, tokens: int) -> float:
    """Tokens/s of so many streams together, from the moment when all of them speak until the first one ends."""
    waiting = {_admit(engine, 16, tokens) for _ in range(number)}
    mine, ended = set(waiting), set[int]()
    while waiting:
        events = engine.step()
        waiting -= {event.handle for event in events}
        ended |= {event.handle for event in events if isinstance(event, Finished)}
    before, begun_s, spent_s = engine.statistics().generated_tokens, time.perf_counter(), 0.0
    while not ended and spent_s < CASE_S:
        events = engine.step()
        ended |= {event.handle for event in events if isinstance(event, Finished)}
        spent_s = time.perf_counter() - begun_s
    made = engine.statistics().generated_tokens - before
    for handle in mine - ended:
        engine.cancel(handle)
    return made / spent_s if spent_s else 0.0


def _admit(engine: Engine, length: int, tokens: int) -> int:
    """A prompt of about so many words, like no other before it; its answer does not end by itself."""
    handle = next(_handles)
    words = [WORDS[(handle * 7 + place * place) % len(WORDS)] for place in range(max(1, length - 4))]
    text = f"{handle} {' '.join(words)}"
    params = Params(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    request = InferenceRequest(id=f"measure-{handle}", user_query=text, params=params)
    engine.admit(engine.prepare(Task(handle, request, Priority.NORMAL)))
    return handle


def _memory() -> Row:
    """Of this process, which is what a worker would be."""
    fields = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Rss")
    )
    kilobytes = {name: int(text.split()[0]) for name, text in fields.items()}
    return {"rss_bytes": sum(kilobytes.values()) * 1024, "private_bytes": kilobytes.get("RssAnon", 0) * 1024}


def main() -> int:
    """See the module's docstring."""
    plan = json.load(sys.stdin)
    if plan["cores"]:
        os.sched_setaffinity(0, plan["cores"])
    spec: Row = plan["spec"] | {"tensor_split": tuple(plan["spec"]["tensor_split"])}
    try:
        for row in measure(EngineSpec(**spec), plan["prompts"], plan["streams"]):
            print(json.dumps(row), flush=True)  # noqa: T201
    except MetamusesdError as error:
        print(json.dumps({"problem": error.message}), flush=True)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
