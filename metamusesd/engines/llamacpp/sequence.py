"""Stage 8 · worker · one job inside the engine: its tokens, its place in line, its text so far.

A sequence has no phases of its own. What it needs follows from its holder: more than one token without KV is prefill
(a new prompt, or one whose KV was dropped), exactly one is decode.
"""

from __future__ import annotations

from dataclasses import dataclass

from metamusesd.engines.base import Finished
from metamusesd.engines.llamacpp.batch import View
from metamusesd.engines.llamacpp.kv import Holder
from metamusesd.engines.llamacpp.prepare import LlamaPrepared
from metamusesd.engines.llamacpp.sampling import Sampler
from metamusesd.engines.text import TextStream

BROKEN_LIMIT_S = 1.0  # so much work a prompt may lose at a time


@dataclass(slots=True)
class Sequence:
    """Mutated by the step thread only. Times are monotonic nanoseconds, 0: not yet."""

    prepared: LlamaPrepared
    order: int
    hold: Holder
    reserved: int  # cells that its admission has set aside
    sampler: Sampler
    text: TextStream
    looked_up: bool = False  # for a prefix that others hold
    cached: int = 0
    generated: int = 0
    yielded_s: float = 0.0
    immune: bool = False
    broken_s: float = 0.0  # in chunks of its prompt that were broken off, since one was computed
    waiting: bool = False
    begun_ns: int = 0
    first_ns: int = 0

    @property
    def handle(self) -> int:
        return self.prepared.task.handle

    @property
    def rank(self) -> int:
        return int(self.prepared.task.priority)

    @property
    def most_cells(self) -> int:
        """What it will hold at its end at most."""
        return self.prepared.prompt_tokens + self.prepared.max_tokens

    @property
    def firm(self) -> bool:
        """Its prompt is not broken off for others."""
        return self.immune or self.broken_s >= BROKEN_LIMIT_S

    def stood_aside(self, took_s: float, limit_s: float) -> None:
        """For a step of a higher class; for no more than `limit_s` in sum."""
        self.yielded_s += took_s
        self.immune = self.immune or self.yielded_s >= limit_s

    def view(self) -> View:
        return View(self.order, self.rank, self.order, self.hold.remaining, self.immune, self.waiting)

    def finished(self, now_ns: int, reason: str = "", error: dict[str, object] | None = None) -> Finished:
        """The last event."""
        first_ns = self.first_ns or now_ns
        return Finished(
            self.handle,
            reason,
            error,
            prompt_tokens=self.prepared.prompt_tokens,
            completion_tokens=self.generated,
            cached_tokens=self.cached,
            prefill_ms=(first_ns - (self.begun_ns or first_ns)) / 1e6,
            decode_ms=(now_ns - first_ns) / 1e6,
        )


def new_sequence(prepared: LlamaPrepared, order: int, seq_id: int, reserved: int) -> Sequence:
    """A sequence at its beginning."""
    grammar = prepared.grammar.clone() if prepared.grammar is not None else None
    return Sequence(
        prepared=prepared,
        order=order,
        hold=Holder(seq_id, prepared.prompt, prepared.max_tokens),
        reserved=reserved,
        sampler=Sampler(prepared.choice, prepared.prompt, grammar),
        text=TextStream(list(prepared.stops)),
        immune=prepared.task.aged,
    )


Entry = tuple[Sequence, int]  # a sequence and how many of its tokens go into the batch


def in_order(entries: list[Entry]) -> list[Entry]:
    """By sequence id: with a recurrent model llama.cpp computes at one go only those whose ids follow one another."""
    return sorted(entries, key=lambda entry: entry[0].hold.seq_id)
