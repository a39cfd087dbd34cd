"""The llamacpp engine beside llama.cpp's own single-sequence class, and its sequences beside each other.

NOISE is by how much the lead of one token before another may change with the batches and the place of the KV, as
`python -m benchmarks correctness --case noise` measured it (docs/engines.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from metamusesd.engines.llamacpp.kv import Holder
from metamusesd.engines.llamacpp.memory import Memory
from metamusesd.errors import ModelLoadFailed
from metamusesd.job import InferenceRequest
from tests.contract.crowd import CONTEXT, Crowd, Said, asked, compared, keep_sequences, lead_where_they_part
from tests.contract.engine_rig import ON_CPU_ONLY, model_file

pytestmark = pytest.mark.timeout(180)  # four engines are loaded; on a busy machine that takes its time

NOISE = 1.5  # logits: 1.12 was measured
PERSONA = (
    "You are the keeper of a small archive by the sea. You answer in one short sentence, you never guess, and you "
    "know every shelf, every box and every letter in the house by heart."
)
WORDS = ("Quarani01", "Vexlope17", "Zornizo23", "Blimkura38", "Drapelo45")


def marked() -> list[InferenceRequest]:
    """Prompts with one word each that no other has; the same persona before them, lengths that differ."""
    return [
        asked(f"The secret word is {word}. {'Not that. ' * place}Say the secret word {word}.", persona=PERSONA)
        for place, word in enumerate(WORDS)
    ]


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


def farthest(alone: list[Said], beside: list[Said]) -> float:
    return max(lead_where_they_part(one, other, NOISE) for one, other in zip(alone, beside, strict=True))


def test_nobody_says_what_only_another_was_told(crowd: Crowd, alone: list[Said]) -> None:
    """Marked prompts together, with a shared prefix, cancels, second admissions and evictions: no answer has another's
    word, and none leaves the path that it takes alone where that was clear."""
    said = crowd.together(marked(), 0)
    assert crowd.engine.statistics().prefix_hits > 0
    assert crowd.evictions > 0
    for place, each in enumerate(said):
        assert not [word for word in WORDS if word in each.text and word != WORDS[place]]
    assert farthest(alone, said) <= NOISE
    assert sum(word in each.text for word, each in zip(WORDS, said, strict=True)) >= len(WORDS) // 2


@ON_CPU_ONLY  # who is lent what is a matter of which prompts ride together
def test_a_leak_would_be_seen(crowd: Crowd, alone: list[Said], monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that lends a few tokens more than two prompts share is found out by the same comparison."""
    real = Memory._find

    def generous(self: Memory, tokens: Any, living: Any) -> tuple[Holder | None, int]:
        source, length = real(self, tokens, living)
        return source, min(length + 12, source.past, len(tokens) - 1) if source else 0

    crowd.engine._memory.forget_cached()
    monkeypatch.setattr(Memory, "_find", generous)
    assert farthest(alone, crowd.together(marked(), 0, cancels=0.0)) > NOISE
    crowd.engine._memory.forget_cached()


@pytest.mark.slow_fault
@ON_CPU_ONLY
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
    assert compared(model_file(), kept, NOISE) > len(requests)


def test_a_sliding_window_is_served_without_tricks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with one shares no prefix, and still says what `Llama` says, also where the window is full."""
    path = model_file().with_name("gemma-3-270m-q4_k_m.gguf")
    if not path.is_file():
        pytest.skip(f"no {path.name}: `metamusesd models fetch gemma3-270m` fetches it")
    crowd = Crowd(model_path=path, slots=2, context=768)
    requests = [asked("One two three four five six. " * 80), asked("Name a river.")]
    kept = keep_sequences(crowd, monkeypatch)
    crowd.together([*requests, requests[1]], 0, cancels=0.0)
    assert max(sequence.prepared.prompt_tokens for sequence in kept) > 512
    assert (crowd.engine.info.prefix_reuse, crowd.engine.statistics().prefix_queries) == (False, 0)
    assert compared(path, kept, NOISE) > 0
    crowd.engine.close()
