"""The llamacpp engine beside llama.cpp's own single-sequence class, and its sequences beside each other.

llama.cpp's logits depend a little on how tokens are batched and where their KV lies: NOISE is by how much the lead of
one token before another may change, as `python -m benchmarks correctness --case noise` measured it (docs/engines.md).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from metamusesd.engines.base import EngineSpec, Token
from metamusesd.engines.llamacpp.kv import Holder
from metamusesd.engines.llamacpp.memory import Memory
from metamusesd.errors import ModelLoadFailed, NoCapacity
from metamusesd.job import InferenceRequest, Params, Priority
from tests.contract.engine_rig import HANDLES, model_file

llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from metamusesd.engines.base import Task  # noqa: E402
from metamusesd.engines.llamacpp import load  # noqa: E402

pytestmark = pytest.mark.timeout(180)  # four engines are loaded; on a busy machine that takes its time

NOISE = 1.5  # logits: 1.12 was measured
CONTEXT, TOKENS = 512, 12
PERSONA = (
    "You are the keeper of a small archive by the sea. You answer in one short sentence, you never guess, and you "
    "know every shelf, every box and every letter in the house by heart."
)
WORDS = ("Quarani01", "Vexlope17", "Zornizo23", "Blimkura38", "Drapelo45")


@dataclass
class Said:
    """What became of one request: its tokens with their two best, and what llama.cpp was given."""

    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    ended: bool = False


class Crowd:
    """Admits and steps one engine, and keeps what each handle said."""

    def __init__(self, **changes: Any) -> None:
        values: dict[str, Any] = {"model_path": str(model_file()), "slots": 3, "reserve_slots": 2, "context": CONTEXT}
        self.engine: Any = load(EngineSpec("llamacpp", "smollm2", **(values | changes)))
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


def marked() -> list[InferenceRequest]:
    """Prompts with one word each that no other has; the same persona before them, lengths that differ."""
    return [
        asked(f"The secret word is {word}. {'Not that. ' * place}Say the secret word {word}.", persona=PERSONA)
        for place, word in enumerate(WORDS)
    ]


def lead_where_they_part(alone: Said, beside: Said) -> float:
    """By how much the token led, alone, at which the two part; 0 if they do not."""
    for one, other in zip(alone.logprobs, beside.logprobs, strict=True):
        if one["token"] != other["token"]:
            first, second = (each["logprob"] for each in one["top"])
            return float(first - second)
        if abs(one["logprob"] - other["logprob"]) > NOISE:
            return float("inf")
    return 0.0


@pytest.fixture(scope="module")
def crowd() -> Iterator[Crowd]:
    """An engine with too few cells for three at once."""
    made = Crowd(kv_cells=CONTEXT)
    yield made
    made.engine.close()


@pytest.fixture(scope="module")
def alone(crowd: Crowd) -> list[Said]:
    """What each marked prompt says when nobody else is there."""
    return [crowd.alone(request) for request in marked()]


def test_nobody_says_what_only_another_was_told(crowd: Crowd, alone: list[Said]) -> None:
    """Marked prompts together, with a shared prefix, cancels, second admissions and evictions: no answer has another's
    word, and none leaves the path that it takes alone where that was clear."""
    said = crowd.together(marked(), 0)
    assert crowd.engine.statistics().prefix_hits > 0
    assert crowd.evictions > 0
    for place, each in enumerate(said):
        assert not [word for word in WORDS if word in each.text and word != WORDS[place]]
    assert max(map(lead_where_they_part, alone, said)) <= NOISE
    assert sum(word in each.text for word, each in zip(WORDS, said, strict=True)) >= len(WORDS) // 2


def test_a_leak_would_be_seen(crowd: Crowd, alone: list[Said], monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that lends a few tokens more than two prompts share is found out by the same comparison."""
    real = Memory._find

    def generous(self: Memory, tokens: Any, living: Any) -> tuple[Holder | None, int]:
        source, length = real(self, tokens, living)
        return source, min(length + 12, source.past, len(tokens) - 1) if source else 0

    crowd.engine._memory.forget_cached()
    monkeypatch.setattr(Memory, "_find", generous)
    assert max(map(lead_where_they_part, alone, crowd.together(marked(), 0, cancels=0.0))) > NOISE
    crowd.engine._memory.forget_cached()


@pytest.mark.slow_fault
def test_deterministic_is_equal_to_the_bit() -> None:
    """With the option, each token and each log-probability is the same alone and amid others that come, push in and are
    cancelled."""
    crowd = Crowd(options={"deterministic": True})
    own = [asked(query) for query in ("Name three rivers.", "Why is the sky blue? " * 5)]
    before = [crowd.alone(request).logprobs for request in own]
    after = [said.logprobs for said in crowd.together([*own, *marked()[:2]], 1, evicts=0)]
    assert after[: len(own)] == before
    assert not crowd.engine.info.prefix_reuse
    crowd.engine.close()


def test_deterministic_is_refused_where_it_was_not_proved() -> None:
    """On a GPU the option is an error that says what to change."""
    with pytest.raises(ModelLoadFailed, match=r"options\.deterministic.*gpu_layers = 0"):
        Crowd(gpu_layers=1, options={"deterministic": True})


def test_tokens_are_those_of_the_plain_class(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batched, chunked, with shared prefixes: each greedy token is the one that `Llama` takes after the same tokens,
    wherever its lead is more than noise."""
    requests = [asked(query, persona=PERSONA) for query in ("Who are you?", "Wie heißt du?")]
    requests += [asked("Write a line of Python.")]
    kept = keep_sequences(crowd, monkeypatch)
    crowd.together(requests, 0, cancels=0.0)
    assert compared(str(model_file()), kept) > len(requests)


def test_a_sliding_window_is_served_without_tricks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with one shares no prefix, and still says what `Llama` says, also where the window is full."""
    path = model_file().with_name("gemma-3-270m-q4_k_m.gguf")
    if not path.is_file():
        pytest.skip(f"no {path.name}: `metamusesd models fetch gemma3-270m` fetches it")
    crowd = Crowd(model_path=str(path), slots=2, context=768)
    requests = [asked("One two three four five six. " * 80), asked("Name a river.")]
    kept = keep_sequences(crowd, monkeypatch)
    crowd.together([*requests, requests[1]], 0, cancels=0.0)
    assert max(sequence.prepared.prompt_tokens for sequence in kept) > 512
    assert (crowd.engine.info.prefix_reuse, crowd.engine.statistics().prefix_queries) == (False, 0)
    assert compared(str(path), kept) > 0
    crowd.engine.close()


def keep_sequences(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The list that each sequence of the engine will be in when it has left."""
    kept, real = list[Any](), crowd.engine._leave

    def leave(sequence: Any, keep: bool = True) -> None:
        kept.append(sequence)
        real(sequence, keep)

    monkeypatch.setattr(crowd.engine, "_leave", leave)
    return kept


def compared(path: str, sequences: Sequence[Any]) -> int:
    """Assert that `Llama` agrees with all of them; how many of their tokens were clear comes back."""
    plain = llama_cpp.Llama(path, n_ctx=768, n_threads=1, n_threads_batch=1, verbose=False)
    clear = 0
    for sequence in sequences:
        tokens = sequence.hold.tokens[: sequence.prepared.prompt_tokens + sequence.generated]
        clear += agrees(plain, tokens, sequence.prepared.prompt_tokens, banned=sequence.prepared.choice.banned)
    plain.close()
    return clear


def agrees(plain: Any, tokens: Any, start: int, banned: Sequence[int]) -> int:
    """Assert it for one answer; how many tokens were clear comes back."""
    plain.reset()
    plain.eval(tokens[:start].tolist())
    clear = 0
    for place in range(start, len(tokens)):
        row = np.ctypeslib.as_array(llama_cpp.llama_get_logits(plain.ctx), (plain.n_vocab(),)).copy()
        row[list(banned)] = -np.inf
        second, first = np.partition(row, len(row) - 2)[-2:]
        if first - second > NOISE:
            assert row.argmax() == tokens[place]
            clear += 1
        plain.eval(tokens[place : place + 1].tolist())
    return clear
