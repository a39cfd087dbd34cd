"""How much memory a model will take, by its header."""

from __future__ import annotations

from dataclasses import fields

import pytest

from metamusesd.config import Model
from metamusesd.engines.base import EngineSpec
from metamusesd.engines.llamacpp.footprint import KV_TYPES, cell_bytes, cell_count, need_of
from metamusesd.gguf import Header

LLAMA = {"block_count": 30, "embedding_length": 576, "attention.head_count": 9, "attention.head_count_kv": 3}


def header(**entries: object) -> Header:
    return Header(3, 0, 0, {"general.architecture": "x"} | {f"x.{key}": value for key, value in entries.items()})


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (LLAMA, 30 * 3 * (64 + 64) * 2),  # SmolLM2: 22.5 KiB a token, as llama.cpp allocates
        (LLAMA | {"attention.key_length": 256, "attention.value_length": 128}, 30 * 3 * (256 + 128) * 2),
        (LLAMA | {"attention.head_count_kv": [0, 1, 3]}, 4 * 128 * 2),  # a number for each layer
        ({key: LLAMA[key] for key in ("block_count", "embedding_length", "attention.head_count")}, 30 * 9 * 128 * 2),
        ({}, 0),
        ({"block_count": "many"}, 0),
    ],
)
def test_a_token_costs_keys_and_values_of_every_layer(entries: dict[str, object], expected: int) -> None:
    """Grouped heads, heads of their own size, layers without any; a header that does not say costs nothing."""
    assert cell_bytes(header(**entries)) == expected


def test_in_8_bit_32_values_and_their_scale_take_34_bytes() -> None:
    """K and V of every head and layer, packed as ggml packs q8_0; the configuration offers what there is."""
    assert cell_bytes(header(**LLAMA), "q8_0") == 30 * 3 * (64 + 64) // 32 * 34
    (known,) = [each for each in fields(Model) if each.name == "kv_cache_type"]
    assert known.metadata["choices"] == tuple(KV_TYPES)
    spec = EngineSpec("llamacpp", "m", kv_cache_type="q8_0")
    assert need_of(spec, header(**LLAMA)).cell_bytes == cell_bytes(header(**LLAMA), "q8_0")


def test_cells_are_what_was_told_or_what_a_full_context_and_every_slot_need() -> None:
    """Never more than all slots can fill, never less than one context, whole blocks of 256."""
    spec = EngineSpec("llamacpp", "m", slots=8, reserve_slots=4)
    assert cell_count(spec, 4096) == 4096 + 8 * 768
    assert cell_count(spec, 64) == 12 * 64
    assert cell_count(EngineSpec("llamacpp", "m", slots=1, kv_cells=100), 1000) == 1024


def test_deterministic_gives_every_sequence_a_context_of_its_own() -> None:
    """Whatever kv_cells says: slots and reserve, each with whole blocks of 256."""
    spec = EngineSpec("llamacpp", "m", slots=2, reserve_slots=1, kv_cells=512, options={"deterministic": True})
    assert cell_count(spec, 1000) == 3 * 1024


MAMBA = {"block_count": 24, "embedding_length": 768, "attention.head_count": 0, "context_length": 1_048_576} | {
    "ssm.conv_kernel": 4, "ssm.inner_size": 1536, "ssm.state_size": 16,
}  # fmt: skip


def test_a_recurrent_model_takes_a_state_for_each_sequence_and_no_cells() -> None:
    """Whatever kv_cells and context are; and the line that tells it names no cells."""
    spec = EngineSpec("llamacpp", "m", slots=8, reserve_slots=4, context=4096, kv_cells=512)
    need = need_of(spec, header(**MAMBA))
    assert need.bytes_ == 12 * 24 * (3 * 1536 + 16 * 1536) * 4
    assert (need.context, need.cells) == (4096, 12 * 4096)
    assert str(need) == "12 states x 2736.0 KiB"


def test_a_hybrid_model_takes_both() -> None:
    """Cells for the layers with attention, states for the others, told together."""
    spec = EngineSpec("llamacpp", "m", slots=8, reserve_slots=4, context=4096, kv_cells=512, kv_cache_type="q8_0")
    layers = {"attention.head_count_kv": [0, 3] * 15, "shortconv.l_cache": 3}
    need = need_of(spec, header(**(LLAMA | layers)))
    assert need.bytes_ == 4096 * 15 * 3 * 128 // 32 * 34 + 12 * 15 * 576 * 2 * 4
    assert str(need) == "4096 KV cells x 6.0 KiB of q8_0 + 12 states x 67.5 KiB"


def test_a_header_that_says_nothing_counts_nothing() -> None:
    assert need_of(EngineSpec("llamacpp", "m"), header()).bytes_ == 0
