"""Which layers keep a state, and how large it is, by the headers of known architectures."""

from __future__ import annotations

from typing import Any

import pytest

from metamusesd.engines.llamacpp.states import kv_heads, state_bytes, state_layers
from metamusesd.gguf import Header

SSM = {"ssm.conv_kernel": 4, "ssm.inner_size": 1536, "ssm.state_size": 16}
MAMBA = SSM | {"block_count": 24, "embedding_length": 768, "attention.head_count": 0}
SHARED = {"block_count": 4, "embedding_length": 64, "attention.head_count": 4}
HYBRID = SHARED | {"attention.head_count_kv": [0, 2, 0, 2]}


def header(architecture: str, entries: dict[str, Any]) -> Header:
    told = {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in entries.items()}
    return Header(3, 0, 0, told)


@pytest.mark.parametrize(
    ("architecture", "entries", "state", "layers", "heads"),
    [
        ("llama", SHARED | {"attention.head_count_kv": 2}, 0, [], 8),
        ("llama", SHARED, 0, [], 16),
        ("mamba", MAMBA, 24 * (3 * 1536 + 16 * 1536) * 4, list(range(24)), 0),  # Mamba 130M: 2.67 MiB, as it is known
        ("mamba2", MAMBA | {"ssm.group_count": 2}, 24 * (3 * (1536 + 64) + 16 * 1536) * 4, list(range(24)), 0),
        ("rwkv7", SHARED | {"attention.head_count": 0, "wkv.head_size": 16}, 4 * 64 * (2 + 16) * 4, [0, 1, 2, 3], 0),
        ("lfm2", HYBRID | {"shortconv.l_cache": 3}, 2 * 64 * 2 * 4, [0, 2], 4),
        ("jamba", HYBRID | SSM, 2 * (3 * 1536 + 16 * 1536) * 4, [0, 2], 4),
        ("kimi-linear", HYBRID | {"kda.head_dim": 8, "ssm.conv_kernel": 4}, 2 * (3 * 3 * 32 + 8 * 32) * 4, [0, 2], 4),
        ("falcon-h1", SHARED | SSM | {"attention.head_count_kv": 2}, 4 * 19 * 1536 * 4, [0, 1, 2, 3], 8),
        ("nemotron_h", HYBRID | SSM | {"feed_forward_length": [9, 0, 0, 0]}, 19 * 1536 * 4, [2], 4),
        ("qwen3next", SHARED | SSM | {"attention.head_count_kv": 2}, 3 * 19 * 1536 * 4, [0, 1, 2], 2),
        ("qwen35", SHARED | SSM | {"full_attention_interval": 2}, 2 * 19 * 1536 * 4, [0, 2], 8),
        ("llama", {}, 0, [], 0),
    ],
)
def test_a_state_by_layer(
    architecture: str, entries: dict[str, Any], state: int, layers: list[int], heads: int
) -> None:
    """What a sequence has beside KV: nothing, or in some layers what a convolution and a recurrence keep."""
    told = header(architecture, entries)
    assert (state_bytes(told), state_layers(told), kv_heads(told)) == (state, layers, heads)
