"""Stage 8 · worker · when a prompt takes over what others have computed of it.

A prompt is looked up when it is in a plan for the first time. Where several prompts ride on one batch (a GPU), one that
begins as another of them does waits until that one is done: it then takes over all that they share.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from metamusesd.engines.llamacpp import kv
from metamusesd.engines.llamacpp.memory import Memory
from metamusesd.engines.llamacpp.sequence import Sequence as Job

WORTH_WAITING = 64  # tokens that another prompt of the batch is about to compute for both


class Prefixes:
    """Counts what it finds. `shares`: whether the model's KV can begin another sequence at all."""

    def __init__(self, memory: Memory, shares: bool) -> None:
        self.queries = self.hits = 0
        self._memory, self._shares = memory, shares

    def look_up(self, job: Job, living: Iterable[Job]) -> bool:
        """Give a prompt that is in the plan the prefix that others hold by now. True if that changed it."""
        if job.looked_up or job.hold.past:
            return False
        job.looked_up = True
        length = self._memory.adopt(job.hold, (other.hold for other in living))
        if not job.first_ns:
            self.hits += length > 0 and not job.cached
            job.cached = min(length, job.prepared.prompt_tokens)
        if not job.begun_ns:
            job.begun_ns = time.perf_counter_ns()
            self.queries += self._shares
        return length > 0

    def who_waits(self, jobs: Sequence[Job]) -> set[int]:
        """Whose prompts, of those in a plan, would be computed twice, by order of admission. They lose the little that
        they have, since a prefix is taken over at the beginning or not at all."""
        first: list[Job] = []
        waiting: set[int] = set()
        for job in jobs if self._shares else ():
            tokens = job.hold.tokens[: job.hold.known]
            shared = max(
                (kv.common_prefix(tokens, other.hold.tokens[: other.hold.known]) for other in first), default=0
            )
            if job.hold.past + WORTH_WAITING <= shared:
                self._memory.drop(job.hold)
                job.looked_up = False
                waiting.add(job.order)
            else:
                first.append(job)
        return waiting
