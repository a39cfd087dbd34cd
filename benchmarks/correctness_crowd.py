"""Correctness benchmark · bench process · many requests through one engine, with all its tricks provoked.

Low-class requests keep the engine full; now and then one of a high class comes and pushes them aside, and now and then
the engine is told to evict, as it does when cells run out. What was provoked is counted, so that a report can show it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.correctness import handles
from metamusesd.engines.base import Finished, Task, Token
from metamusesd.errors import NoCapacity
from metamusesd.job import InferenceRequest, Priority

HIGH_EVERY = 5  # requests
PAUSE = 6  # steps between two arrivals of the high class
EVICT_EVERY = 20  # steps


@dataclass
class Answer:
    """What became of one request."""

    prompt: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]
    text: str
    logprobs: list[Any]
    ended: bool  # by a token of the model, which is not among `tokens`


class Crowd:
    """Drives one engine on its step thread."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.counts = engine, Counter[str]()
        self.before_step: Callable[[], None] = lambda: None
        self._sequences: dict[int, Any] = {}
        self._texts: dict[int, str] = {}
        self._logprobs: dict[int, list[Any]] = {}
        self._ends: dict[int, Finished] = {}
        self._watch()

    def _watch(self) -> None:
        learn, evict = self.engine._learn, self.engine._evict

        def learnt(chosen: Any, *rest: Any) -> None:
            self.counts["prompt chunks"] += len(chosen.prefill)
            self.counts["steps that a sequence yielded"] += len(chosen.yielding)
            learn(chosen, *rest)

        def evicted() -> bool:
            found: bool = evict()
            self.counts["evictions"] += found
            return found

        self.engine._learn, self.engine._evict = learnt, evicted

    def answers(self, requests: Sequence[InferenceRequest]) -> list[Answer]:
        """All of them, in their order."""
        places = list(range(len(requests)))
        piles = [
            places[HIGH_EVERY - 1 :: HIGH_EVERY],
            [place for place in places if place % HIGH_EVERY != HIGH_EVERY - 1],
        ]
        given: dict[int, int] = {}
        turn = 0
        while piles[0] or piles[1] or self.engine.busy():
            if piles[0] and (turn % PAUSE == 0 or not piles[1]):
                self._offer(requests, piles[0], Priority.HIGH, given)
            while piles[1] and self._offer(requests, piles[1], Priority.LOW, given):
                pass
            if turn % EVICT_EVERY == EVICT_EVERY - 1:
                self.engine._evict()
            self.step()
            turn += 1
        self.counts["prefixes reused"] = self.engine.statistics().prefix_hits
        return [self.answer(given[place]) for place in places]

    def _offer(
        self, requests: Sequence[InferenceRequest], pile: list[int], rank: Priority, given: dict[int, int]
    ) -> bool:
        handle = self.admit(requests[pile[0]], rank)
        if handle is not None:
            given[pile.pop(0)] = handle
        return handle is not None

    def admit(self, request: InferenceRequest, priority: Priority = Priority.NORMAL) -> int | None:
        """Its handle; None when there is no room."""
        handle = next(handles)
        try:
            self.engine.admit(self.engine.prepare(Task(handle, request, priority)))
        except NoCapacity:
            return None
        self._sequences[handle] = self.engine._live[self.engine._orders[handle]]
        self._texts[handle], self._logprobs[handle] = "", []
        return handle

    def step(self) -> None:
        self.before_step()
        for event in self.engine.step():
            if isinstance(event, Token):
                self._texts[event.handle] += event.text
                self._logprobs[event.handle] += event.logprobs or []
            else:
                self._ends[event.handle] = event

    def ended(self, handle: int) -> bool:
        return handle in self._ends

    def answer(self, handle: int) -> Answer:
        """Of one that has ended."""
        sequence, end = self._sequences[handle], self._ends[handle]
        if end.error:
            raise RuntimeError(f"a request failed: {end.error}")
        length = sequence.prepared.prompt_tokens
        tokens = sequence.hold.tokens[length : length + sequence.generated]
        ended = end.reason == "stop" and not sequence.text.stopped  # by a stop string: the model chose none
        return Answer(sequence.hold.tokens[:length], tokens, self._texts[handle], self._logprobs[handle], ended)
