"""The llamacpp engine with models that keep a state, or see a window only: nothing of one sequence can begin another.

The models are made (`made_gguf.py`), so that no file is needed; what they say depends on all that they have read, and
llama.cpp computes them so evenly that a foreign or a stale state shows in the first log-probabilities.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metamusesd.engines.base import EngineSpec, Finished
from metamusesd.engines.llamacpp.footprint import need_of
from metamusesd.errors import NoCapacity
from metamusesd.gguf import read_header
from metamusesd.job import InferenceRequest, Params, Priority
from tests.contract.crowd import TOKENS, Crowd, Said, asked, compared, keep_sequences, lead_where_they_part
from tests.contract.engine_rig import ON_CPU_ONLY
from tests.contract.llama_log import heard
from tests.contract.made_gguf import MAKERS, make

llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from benchmarks.correctness_lab import Lab  # noqa: E402
from metamusesd.engines.llamacpp.native import Model  # noqa: E402

pytestmark = ON_CPU_ONLY

NOISE = 0.05  # logits: at most 0.02 was measured, in chunks of 32 to 1 and beside seven others
CHUNK = 64
STATES = ("mamba", "granitehybrid", "lfm2")
LONG = "Word by word the keeper reads the register of the harbour. " * 6


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {architecture: make(architecture, place / f"{architecture}.gguf") for architecture in MAKERS}


@pytest.fixture(scope="module", params=MAKERS)
def loaded(request: pytest.FixtureRequest, files: dict[str, Path]) -> Iterator[Crowd]:
    """One engine of each, with too few cells for three at once."""
    made = Crowd(model_path=files[request.param], kv_cells=512)
    yield made
    made.engine.close()


@pytest.fixture
def crowd(loaded: Crowd) -> Iterator[Crowd]:
    """Steps are followed by a look at the account."""
    yield loaded
    for handle in list(loaded.engine._orders):
        loaded.engine.cancel(handle)
    account(loaded.engine)


def account(engine: Any) -> None:
    """Every sequence holds in llama.cpp what it holds by our account, and all other ids hold nothing."""
    held = {sequence.hold.seq_id: sequence.hold.past for sequence in engine._live.values()}
    ids = engine._spec.slots + engine._spec.reserve_slots
    assert [engine._context.length(place) for place in range(ids)] == [held.get(place, 0) for place in range(ids)]
    assert engine.statistics().kv_cells_used == sum(held.values())


def until_first(crowd: Crowd, handle: int) -> None:
    while not crowd.said[handle].logprobs:
        crowd.step()


def finish(crowd: Crowd) -> None:
    while crowd.engine.busy():
        crowd.step()
        account(crowd.engine)


def admitted(crowd: Crowd, request: InferenceRequest, priority: Priority = Priority.NORMAL) -> int:
    handle = crowd.admit(request, priority)
    assert handle is not None
    return handle


def hold_of(crowd: Crowd, handle: int) -> Any:
    return crowd.engine._live[crowd.engine._orders[handle]].hold


def requests() -> list[InferenceRequest]:
    """Prompts of different lengths with the same words in front."""
    return [asked(f"{'Not that. ' * place}The word is {word}.") for place, word in enumerate(("one", "two", "six"))]


def many() -> list[InferenceRequest]:
    """24 prompts of drawn words, two to forty."""
    draw = random.Random(7)
    return [asked(" ".join(draw.choices(LONG.split(), k=draw.randint(2, 40)))) for _ in range(24)]


def same(alone: Said, beside: Said) -> bool:
    return lead_where_they_part(alone, beside, NOISE) <= NOISE


def test_nothing_is_shared(crowd: Crowd) -> None:
    """No prefix is looked up and nothing is kept, and whoever asks is told so."""
    first, again = crowd.alone(requests()[1]), crowd.alone(requests()[1])
    assert again.logprobs == first.logprobs
    statistics = crowd.engine.statistics()
    assert (crowd.engine.info.prefix_reuse, statistics.prefix_queries, statistics.prompt_tokens > 0) == (False, 0, True)
    account(crowd.engine)


@pytest.mark.parametrize("architecture", MAKERS)
def test_noise_is_small_and_memory_long(files: dict[str, Path], architecture: str) -> None:
    """What NOISE rests on: cut or batched in any way, the same tokens give logits that differ by less than half of it;
    with another first token they differ by more than twice as much, 250 tokens later."""
    model = Model(EngineSpec("llamacpp", architecture, str(files[architecture])))
    lab, draw = Lab(model, flash=True, cells=4096), random.Random(1)
    first, *others = ([draw.randrange(256) for _ in range(250)] for _ in range(8))
    rows = lab.prompt(0, first, 64)
    for chunk in (256, 32, 8, 1):
        lab.clear()
        assert np.abs(lab.prompt(0, first, chunk) - rows).max() < NOISE / 2
    lab.clear()
    for place, tokens in enumerate(zip(first, *others, strict=True)):
        row = lab.decode([(sequence, place, token) for sequence, token in enumerate(tokens)])[0]
        assert np.abs(row - rows[place]).max() < NOISE / 2
    lab.clear()
    assert np.abs(lab.prompt(0, [first[0] ^ 1, *first[1:]], 64)[-1] - rows[-1]).max() > 2 * NOISE
    lab.close()
    model.close()


@pytest.mark.parametrize("mixes", [False, True])  # True: prompts and decodes in one batch, as on a GPU
def test_together_as_alone(crowd: Crowd, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, mixes: bool) -> None:
    """Of random classes, cancelled and admitted again, losing what they hold and recomputed: each says what it says
    alone, and what `Llama` says."""
    alone = [crowd.alone(request) for request in many()]
    kept, evicted = keep_sequences(crowd, monkeypatch), crowd.evictions
    monkeypatch.setattr(crowd.engine, "_mixes", mixes)
    said = crowd.together(many(), 3)
    assert crowd.evictions > evicted
    assert all(map(same, alone, said))
    assert compared(files[crowd.engine.info.architecture], kept, NOISE) > 0.9 * TOKENS * len(said)


@pytest.mark.parametrize("loaded", STATES, indirect=True)
def test_a_state_that_stays_would_be_seen(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what a sequence leaves behind is not taken away, and only its positions are, the next one says another
    thing: by the same comparison."""
    context, (first, _, second) = crowd.engine._context, requests()
    alone = crowd.alone(second)

    def rewind(sequence: int, start: int = 0) -> bool:
        llama_cpp.llama_memory_seq_add(context._memory, sequence, start, -1, start - context.length(sequence))
        return True

    with monkeypatch.context() as patch:
        patch.setattr(context, "remove", rewind)
        crowd.alone(first)
    assert not same(alone, crowd.alone(second))
    assert same(alone, crowd.alone(second))


def test_low_yields_and_keeps_its_state(crowd: Crowd) -> None:
    """It stands still while a critical one of the reserve runs, and goes on where it was: nothing is computed twice."""
    request, other = requests()[:2]
    alone, low = crowd.alone(request), admitted(crowd, request, Priority.LOW)
    until_first(crowd, low)
    computed, before = crowd.engine.statistics().prompt_tokens, len(crowd.said[low].logprobs)
    critical = admitted(crowd, other, Priority.CRITICAL)
    prompt = hold_of(crowd, critical).known
    while not crowd.said[critical].ended:
        assert len(crowd.said[low].logprobs) == before
        crowd.step()
    finish(crowd)
    assert crowd.engine.statistics().prompt_tokens - computed == prompt
    assert same(alone, crowd.said[low])


def test_few_cells(crowd: Crowd) -> None:
    """Where tokens have cells and there are too few, low ones lose theirs to a critical one and are recomputed to the
    same answers; where a sequence has one state, nobody has to."""
    lows = [long_one(f"{place} fish. " * 13, 90) for place in range(2)]
    alone, before = [crowd.alone(request) for request in lows], crowd.engine.statistics().prompt_tokens
    handles = [admitted(crowd, request, Priority.LOW) for request in lows]
    for handle in handles:
        until_first(crowd, handle)
    handles.append(admitted(crowd, long_one(LONG[:300], 60), Priority.CRITICAL))
    prompts = sum(sequence.prepared.prompt_tokens for sequence in crowd.engine._live.values())
    finish(crowd)
    assert all(map(same, alone, (crowd.said[handle] for handle in handles)))
    twice = crowd.engine.statistics().prompt_tokens - before - prompts
    assert (twice == 0) == (crowd.engine.info.architecture == "mamba")


def long_one(query: str, tokens: int) -> InferenceRequest:
    return InferenceRequest(
        user_query=query, params=Params(max_tokens=tokens, temperature=0.0, logprobs=2, ignore_eos=True)
    )


@pytest.mark.parametrize("loaded", ["mamba"], indirect=True)
def test_a_state_has_no_length(crowd: Crowd) -> None:
    """Whatever `kv_cells` is, as many sequences of a whole context are admitted as there are slots."""
    handles = [admitted(crowd, long_one(LONG, 100_000)) for _ in range(3)]
    with pytest.raises(NoCapacity, match="slot"):
        crowd.engine.admit(crowd.engine.prepare(crowd.engine._live[crowd.engine._orders[handles[0]]].prepared.task))
    assert crowd.engine.statistics().kv_cells == 5 * 512


@pytest.fixture
def curious(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk asks between every two nodes of its graph, and not every 10 ms: the same on every machine."""
    monkeypatch.setattr("metamusesd.engines.llamacpp.native.LOOK_NS", 0)


@pytest.mark.usefixtures("curious")
@pytest.mark.parametrize("cancelled", [True, False])
def test_a_prompt_is_interrupted_in_its_chunk(crowd: Crowd, monkeypatch: pytest.MonkeyPatch, cancelled: bool) -> None:
    """A state that is half a chunk further cannot be taken back: it is begun again, should its sequence live on. Nobody
    ends for that, and neither it nor its neighbour says another thing."""
    monkeypatch.setattr(crowd.engine._context, "limit", CHUNK)
    request, other = asked(LONG[:250]), requests()[0]
    alone, alone_other = crowd.alone(request), crowd.alone(other)
    neighbour = admitted(crowd, other, Priority.LOW)
    until_first(crowd, neighbour)
    handle, looks = admitted(crowd, request, Priority.CRITICAL), list[int]()
    crowd.step()
    hold = hold_of(crowd, handle)
    assert hold.past == CHUNK < hold.known
    assert crowd.engine.step(lambda which: looks.append(which) or len(looks) == 20) == []  # type: ignore[func-returns-value]
    assert looks == [handle] * 20  # in the middle of the model's layers, and not again after the yes
    assert hold.past == (0 if crowd.engine.info.architecture in STATES else CHUNK)
    account(crowd.engine)
    if cancelled:
        assert crowd.engine.cancel(handle)
    finish(crowd)
    assert same(alone_other, crowd.said[neighbour])
    assert same(alone, crowd.alone(request) if cancelled else crowd.said[handle])


def test_a_failed_decode(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """What llama.cpp computed and then called failed ends with an error and leaves nothing behind; who was not in that
    batch goes on undisturbed."""
    failing, waiting = requests()[:2]
    alone, alone_waiting = crowd.alone(failing), crowd.alone(waiting)
    low = admitted(crowd, waiting, Priority.LOW)
    until_first(crowd, low)
    critical, real = admitted(crowd, failing, Priority.CRITICAL), crowd.engine._context.decode
    until_first(crowd, critical)
    with monkeypatch.context() as patch:
        patch.setattr(crowd.engine._context, "decode", lambda count, _: real(count) or -3)
        (end,) = crowd.engine.step()
    assert isinstance(end, Finished) and end.handle == critical and end.error is not None
    assert end.error["code"] == "engine_failed"
    account(crowd.engine)
    finish(crowd)
    assert same(alone_waiting, crowd.said[low])
    assert same(alone, crowd.alone(failing))


@pytest.mark.usefixtures("curious")
@pytest.mark.parametrize("loaded", STATES, indirect=True)
def test_a_batch_is_computed_at_one_go(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sequences cost a decode step no more nodes of the graph than one does, in whatever order they came, and
    whichever ids became free in between."""
    nodes, real = list[int](), crowd.engine._context.decode

    def counted(count: int, _: Any = None) -> int:
        nodes.append(0)
        return int(real(count, lambda: bool(nodes.append(nodes.pop() + 1))))

    monkeypatch.setattr(crowd.engine._context, "decode", counted)
    crowd.alone(requests()[0])
    one = nodes[-1]
    handles = [admitted(crowd, request) for request in requests()]
    crowd.engine.cancel(handles[0])
    crowd.engine.cancel(handles[2])
    handles = [handles[1], *(admitted(crowd, request) for request in requests()[:2])]
    for handle in handles:
        until_first(crowd, handle)
    before = len(nodes)
    crowd.step()
    assert nodes[before:] == [one]


@pytest.mark.parametrize("architecture", MAKERS)
def test_deterministic_is_equal_to_the_bit(files: dict[str, Path], architecture: str) -> None:
    """With the option, each log-probability is the same alone and amid others that come and are cancelled."""
    crowd = Crowd(model_path=files[architecture], options={"deterministic": True})
    alone = [crowd.alone(request).logprobs for request in requests()]
    assert [said.logprobs for said in crowd.together(requests(), 1, evicts=0)] == alone
    account(crowd.engine)
    crowd.engine.close()


@pytest.mark.parametrize("architecture", MAKERS)
def test_memory_is_as_computed(files: dict[str, Path], architecture: str) -> None:
    """llama.cpp allocates what the header says: cells where layers have them, also where they see a window only, and a
    state for each sequence where layers keep one."""
    with heard() as told:
        crowd = Crowd(model_path=files[architecture], slots=100, reserve_slots=100, kv_cells=16384)
    sizes = [float(found) for line in told for found in re.findall(r"^llama_\w+: size = *([\d.]+) MiB", line)]
    computed = need_of(crowd.engine._spec, read_header(files[architecture])).bytes_ / 2**20
    crowd.engine.close()
    assert sum(sizes) == pytest.approx(computed, abs=0.01 * len(sizes))
