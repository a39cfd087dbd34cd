"""A crowd of requests in one llamacpp engine, and what llama.cpp's own single-sequence class says beside it.

llama.cpp's logits depend a little on how tokens are batched and where their KV lies. `noise`, in logits, is by how much
the lead of one token before another may change for that reason alone: it is the model's, and has to be measured.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metamusesd.engines.base import EngineSpec, Task, Token
from metamusesd.errors import NoCapacity
from metamusesd.job import InferenceRequest, Params, Priority
from tests.contract.engine_rig import GPU_LAYERS, HANDLES, model_file

llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from metamusesd.engines.llamacpp import load  # noqa: E402
from metamusesd.engines.llamacpp.prepare import LlamaPrepared  # noqa: E402

CONTEXT, TOKENS = 512, 12


@dataclass
class Said:
    """What became of one request: its tokens with their two best, and what llama.cpp was given."""

    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    ended: bool = False


class Crowd:
    """Admits and steps one engine, and keeps what each handle said."""

    def __init__(self, **changes: Any) -> None:
        values: dict[str, Any] = {
            "slots": 3,
            "reserve_slots": 2,
            "context": CONTEXT,
            "gpu_layers": GPU_LAYERS,
        } | changes
        path = values.pop("model_path", None) or model_file()
        self.engine: Any = load(EngineSpec("llamacpp", "crowd", str(path), **values))
        self.said: dict[int, Said] = {}
        self.evictions = 0

    def admit(self, request: InferenceRequest, priority: Priority = Priority.NORMAL) -> int | None:
        handle = next(HANDLES)
        try:
            self.engine.admit(self.engine.prepare(Task(handle, request, priority)))
        except NoCapacity:
            return None
        self.said[handle] = Said()
        return handle

    def step(self) -> None:
        for event in self.engine.step():
            said = self.said[event.handle]
            if isinstance(event, Token):
                said.text += event.text
                said.logprobs += event.logprobs or []
            else:
                assert event.error is None
                said.ended = True

    def alone(self, request: InferenceRequest) -> Said:
        self.engine._memory.forget_cached()
        handle = self.admit(request)
        assert handle is not None
        while not self.said[handle].ended:
            self.step()
        return self.said[handle]

    def together(
        self, requests: Sequence[InferenceRequest], seed: int, *, cancels: float = 0.15, evicts: float = 0.15
    ) -> list[Said]:
        """In a random order and of random classes; some are cancelled on their way and come again, some lose their
        KV. `cancels`, `evicts`: in this share of the steps."""
        source, given = random.Random(seed), dict[int, int]()
        waiting = source.sample(range(len(requests)), len(requests))
        while waiting or self.engine.busy():
            if waiting and (handle := self.admit(requests[waiting[0]], source.choice(list(Priority)))) is not None:
                given[waiting.pop(0)] = handle
            running = [place for place, handle in given.items() if not self.said[handle].ended]
            if running and source.random() < cancels:
                place = source.choice(running)
                self.engine.cancel(given.pop(place))
                waiting.append(place)
            if source.random() < evicts:
                self.evictions += self.engine._evict()  # as when cells run out
            self.step()
        return [self.said[given[place]] for place in range(len(requests))]


def asked(query: str, **changes: Any) -> InferenceRequest:
    params = Params(max_tokens=TOKENS, temperature=0.0, logprobs=2, ignore_eos=True)
    return InferenceRequest(user_query=query, params=params, **changes)


def lead_where_they_part(alone: Said, beside: Said, noise: float) -> float:
    """By how much the token led, alone, at which the two part; 0 if they do not. Infinite where a token became likelier
    or less likely by more than noise."""
    for one, other in zip(alone.logprobs, beside.logprobs, strict=True):
        if one["token"] != other["token"]:
            first, second = (each["logprob"] for each in one["top"])
            return float(first - second)
        if abs(one["logprob"] - other["logprob"]) > noise:
            return float("inf")
    return 0.0


def keep_sequences(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The list that each sequence of the engine will be in when it has left."""
    kept, real = list[Any](), crowd.engine._leave

    def leave(sequence: Any, keep: bool = True) -> None:
        kept.append(sequence)
        real(sequence, keep)

    monkeypatch.setattr(crowd.engine, "_leave", leave)
    return kept


def compared(path: Path, sequences: Sequence[Any], noise: float) -> int:
    """Assert that `Llama` agrees with all of them; how many of their tokens were clear comes back."""
    plain = llama_cpp.Llama(
        str(path), n_ctx=768, n_threads=1, n_threads_batch=1, n_gpu_layers=GPU_LAYERS, verbose=False
    )
    clear = 0
    for sequence in sequences:
        tokens = sequence.hold.tokens[: sequence.prepared.prompt_tokens + sequence.generated]
        clear += agrees(plain, tokens, sequence.prepared, noise)
    plain.close()
    return clear


def agrees(plain: Any, tokens: Any, prepared: LlamaPrepared, noise: float) -> int:
    """Assert it for one answer; how many tokens were clear comes back."""
    start, banned = prepared.prompt_tokens, prepared.choice.banned
    plain.reset()
    plain.eval(tokens[:start].tolist())
    clear = 0
    for place in range(start, len(tokens)):
        row = np.ctypeslib.as_array(llama_cpp.llama_get_logits(plain.ctx), (plain.n_vocab(),)).copy()
        row[list(banned)] = -np.inf
        second, first = np.partition(row, len(row) - 2)[-2:]
        if first - second > noise:
            assert row.argmax() == tokens[place]
            clear += 1
        plain.eval(tokens[place : place + 1].tolist())
    return clear
