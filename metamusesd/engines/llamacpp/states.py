"""Stage 8 · any process · which layers have a KV cache and which keep a state, by the header. Pure, as footprint.py.

    recurrent    mamba, rwkv …      every layer keeps a state: a sequence costs the same however long it is
    hybrid       jamba, lfm2 …      some layers keep a state, the others have K and V; falcon-h1: each has both

llama.cpp keeps states in single precision, one a sequence id and layer: what a convolution still has to see, and what
the recurrence has summed up. Its own formulas: `n_embd_r` and `n_embd_s` in llama-hparams.cpp.
"""

from __future__ import annotations

from typing import Any

from metamusesd.gguf import Header

SINGLE_BYTES = 4
BOTH = ("falcon-h1",)  # a state and K and V in each layer
IDLE = ("nemotron_h", "nemotron_h_moe")  # layers with a feed-forward part have neither
INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "qwen4exp": 4}  # each so many layers one has attention


def state_bytes(header: Header) -> int:
    """Of one sequence, over all layers; 0: the model keeps none, or its header does not say."""
    return len(state_layers(header)) * _state_values(header) * SINGLE_BYTES


def state_layers(header: Header) -> list[int]:
    """The layers that keep a state."""
    layers = range(number(header.of_architecture("block_count"))) if _state_values(header) else range(0)
    if header.architecture in BOTH:
        return list(layers)
    if interval := number(header.of_architecture("full_attention_interval")) or INTERVALS.get(header.architecture, 0):
        return [layer for layer in layers if (layer + 1) % interval]
    heads, feeds = (_by_layer(header, key) for key in ("attention.head_count_kv", "feed_forward_length"))
    idle = header.architecture in IDLE
    return [layer for layer in layers if not heads[layer] and not (idle and feeds[layer])]


def kv_heads(header: Header) -> int:
    """Heads of K and V, in all layers that have a KV cache together."""
    told = header.of_architecture("attention.head_count_kv") is not None
    found = _by_layer(header, "attention.head_count_kv" if told else "attention.head_count")
    without = [] if header.architecture in BOTH else state_layers(header)
    return sum(heads for layer, heads in enumerate(found) if layer not in without)


def number(value: Any) -> int:
    """A list has one for each layer: its largest."""
    if isinstance(value, list):
        return max((each for each in value if isinstance(each, int)), default=0)
    return value if isinstance(value, int) else 0


def _by_layer(header: Header, key: str) -> list[int]:
    value, layers = header.of_architecture(key), number(header.of_architecture("block_count"))
    values = [number(each) for each in value] if isinstance(value, list) else [number(value)] * layers
    return (values + [0] * layers)[:layers]


def _state_values(header: Header) -> int:
    """Numbers in the state of one layer."""
    width, heads, wkv, shortconv, kda, conv, inner, state, groups = (
        number(header.of_architecture(key))
        for key in (
            "embedding_length", "attention.head_count", "wkv.head_size", "shortconv.l_cache", "kda.head_dim",
            "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count",
        )
    )  # fmt: skip
    if wkv:
        return width * ((number(header.of_architecture("token_shift_count")) or 2) + wkv)
    if shortconv:
        return width * (shortconv - 1)
    if kda:
        return heads * kda * (3 * ((conv or 4) - 1) + kda)
    return max(conv - 1, 0) * (inner + 2 * groups * state) + state * inner
