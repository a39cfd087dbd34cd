"""The llamacpp engine with KV in 8 bit: it says what llama.cpp's own class says with the same, in less memory."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metamusesd.engines.base import EngineSpec
from metamusesd.engines.llamacpp.footprint import KV_TYPES, need_of
from metamusesd.errors import ModelLoadFailed
from metamusesd.gguf import read_header
from tests.contract.crowd import Crowd, agrees, asked, keep_sequences
from tests.contract.engine_rig import model_file
from tests.contract.llama_log import heard
from tests.contract.made_gguf import make

llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from metamusesd.engines.llamacpp import load, native  # noqa: E402

pytestmark = pytest.mark.timeout(180)

NOISE = 1.5  # logits, as with f16: docs/engines.md
CONTEXT, CELLS = 512, 4096  # tokens
PERSONA = "You are the keeper of a small archive by the sea. You answer in one short sentence, and you never guess."
QUERIES = ("Who are you?", "Wie heißt du?", "Name three rivers.")


def test_it_says_what_the_plain_class_says_with_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes are shared, KV is lost and computed again, as ever; each greedy token is the one that `Llama` with q8_0
    takes, wherever its lead is more than noise."""
    crowd = Crowd(kv_cells=CONTEXT, kv_cache_type="q8_0")
    kept = keep_sequences(crowd, monkeypatch)
    crowd.together([asked(query, persona=PERSONA) for query in QUERIES], 0, cancels=0.0, evicts=0.4)
    assert crowd.engine.statistics().prefix_hits > 0
    assert crowd.evictions > 0
    plain = llama_cpp.Llama(
        str(model_file()), n_ctx=768, n_threads=1, n_threads_batch=1, verbose=False, flash_attn=True,
        type_k=llama_cpp.GGML_TYPE_Q8_0, type_v=llama_cpp.GGML_TYPE_Q8_0,
    )  # fmt: skip
    clear = 0
    for sequence in kept:
        tokens = sequence.hold.tokens[: sequence.prepared.prompt_tokens + sequence.generated]
        clear += agrees(plain, tokens, sequence.prepared, NOISE)
    plain.close()
    crowd.engine.close()
    assert clear > len(QUERIES)


@pytest.mark.slow_fault
def test_deterministic_is_equal_to_the_bit_with_it() -> None:
    """Alone and beside others that come, push in and are cancelled: the same tokens and log-probabilities."""
    crowd = Crowd(options={"deterministic": True}, kv_cache_type="q8_0")
    own = [asked(query) for query in QUERIES[:2]]
    before = [crowd.alone(request).logprobs for request in own]
    others = [asked(query, persona=PERSONA) for query in QUERIES[1:]]
    after = [said.logprobs for said in crowd.together([*own, *others], 1, evicts=0)]
    assert after[: len(own)] == before
    crowd.engine.close()


def test_memory_falls_as_computed() -> None:
    """llama.cpp allocates what the header and the type say, and the process' own memory falls by that much."""
    loaded(CONTEXT).close()  # what libraries take once is there before anything is counted
    computed, allocated, own = (dict.fromkeys(KV_TYPES, 0.0) for _ in range(3))
    for kind in KV_TYPES:
        before = own_mib()
        with heard() as told:
            engine = loaded(CELLS, kv_cache_type=kind)
        own[kind] = own_mib() - before
        engine.close()
        computed[kind] = need_of(engine._spec, read_header(model_file())).bytes_ / 2**20
        (line,) = [text for text in told if "llama_kv_cache: size =" in text]
        allocated[kind] = float(line.split("size =")[1].split()[0])
    assert allocated == pytest.approx(computed, abs=0.01)
    assert own["f16"] - own["q8_0"] == pytest.approx(computed["f16"] - computed["q8_0"], abs=4.0)


def loaded(context: int, **changes: Any) -> Any:
    spec = EngineSpec("llamacpp", "m", str(model_file()), slots=1, reserve_slots=0, context=context, kv_cells=context)
    return load(replace(spec, **changes))


def own_mib() -> float:
    """Anonymous memory of this process."""
    (found,) = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found) / 1024


def test_the_types_are_llama_cpps() -> None:
    """What the configuration offers is what llama.cpp is given, by its own numbers."""
    theirs = {kind: getattr(llama_cpp, f"GGML_TYPE_{kind.upper()}") for kind in KV_TYPES}
    assert theirs == native.GGML_TYPES


def test_what_cannot_be_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """Without flash attention, with a type that does not exist, and where a head does not fill a block of 32 values."""
    with pytest.raises(ModelLoadFailed, match=r"q8_0 wants flash attention; set flash_attention = true"):
        loaded(CONTEXT, kv_cache_type="q8_0", flash_attention=False)
    with pytest.raises(ModelLoadFailed, match="'q4_0' is not known; use f16, q8_0"):
        loaded(CONTEXT, kv_cache_type="q4_0")
    narrow = make("gemma3", tmp_path / "narrow.gguf")
    with pytest.raises(ModelLoadFailed, match=r"K cache type q8_0 with block size 32 does not divide n_embd_head_k=16"):
        loaded(CONTEXT, model_path=str(narrow), kv_cache_type="q8_0")
