"""GGUF files that load in a moment: some layers of drawn weights, a token for each byte. What they say is noise.

    mamba          recurrent: each layer keeps a state, none a KV cache
    granitehybrid  a state of that kind in some layers, attention in the others
    lfm2           a state of three tokens' convolution in some layers, attention in the others
    gemma3         attention, which sees a window of WINDOW tokens in some layers

The states are made to remember: what a sequence says depends on its first tokens as well as on its last ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gguf_writer import Tensor, of_array, write
from metamusesd.engines.template import CHATML

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 256 + len(CONTROLS)
WIDTH, INNER, LAYERS, HEADS, KV_HEADS, CONTEXT = 64, 128, 4, 4, 2, 4096
HEAD = WIDTH // HEADS
STATE, CONV, RANK, GROUPS, SSM_HEADS = 16, 4, 8, 2, 8
WINDOW = 64
KV_HEADS_BY_LAYER = [0, KV_HEADS, 0, KV_HEADS]  # those without any keep a state

Weights = npt.NDArray[np.float64]


class Draw:
    """Weights by name, in the order in which they are drawn."""

    def __init__(self, seed: int) -> None:
        self._draw = np.random.default_rng(seed)
        self.tensors: list[Tensor] = []

    def add(self, name: str, values: Weights) -> None:
        self.tensors.append(of_array(name, values))

    def matrix(self, name: str, columns: int, rows: int, gain: float = 1.0) -> None:
        self.add(f"{name}.weight", self._draw.normal(0, gain * columns**-0.5, (rows, columns)))

    def between(self, name: str, least: float, most: float, *shape: int) -> None:
        self.add(name, self._draw.uniform(least, most, shape))

    def ones(self, name: str, *shape: int) -> None:
        self.add(f"{name}.weight", np.ones(shape))


def make(architecture: str, path: Path, seed: int = 1) -> Path:
    """Write a model of one of MAKERS."""
    draw = Draw(seed)
    draw.matrix("token_embd", WIDTH, VOCABULARY, gain=WIDTH**0.5)
    draw.matrix("output", WIDTH, VOCABULARY, gain=4)
    described = MAKERS[architecture](draw)
    entries = {"general.architecture": architecture, "general.name": f"A made {architecture}"}
    entries |= {f"{architecture}.{key}": value for key, value in (_USUAL | described).items()}
    write(path, entries | tokenizer(), draw.tensors)
    return path


_USUAL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "context_length": CONTEXT, "embedding_length": WIDTH, "block_count": LAYERS,
    "feed_forward_length": INNER, "attention.layer_norm_rms_epsilon": 1e-5, "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS, "rope.dimension_count": HEAD, "rope.freq_base": 10_000.0,
}  # fmt: skip
_SSM: dict[str, Any] = {
    "ssm.conv_kernel": CONV, "ssm.inner_size": 2 * WIDTH, "ssm.state_size": STATE, "ssm.time_step_rank": RANK,
}  # fmt: skip


def tokenizer() -> dict[str, Any]:
    """As all byte-level tokenizers spell bytes; without merges every byte is a token."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    spelt = {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(rest)}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [spelt[byte] for byte in range(256)] + list(CONTROLS),
        "tokenizer.ggml.token_type": [1] * 256 + [3] * len(CONTROLS),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }


def _mamba(draw: Draw) -> dict[str, Any]:
    inner = 2 * WIDTH
    draw.ones("output_norm", WIDTH)
    for at in (f"blk.{layer}" for layer in range(LAYERS)):
        draw.ones(f"{at}.attn_norm", WIDTH)
        draw.matrix(f"{at}.ssm_in", WIDTH, 2 * inner)
        draw.matrix(f"{at}.ssm_conv1d", CONV, inner)
        draw.between(f"{at}.ssm_conv1d.bias", -0.1, 0.1, inner)
        draw.matrix(f"{at}.ssm_x", inner, RANK + 2 * STATE, gain=2)
        draw.matrix(f"{at}.ssm_dt", RANK, inner)
        draw.between(f"{at}.ssm_dt.bias", -2, -1, inner)
        draw.between(f"{at}.ssm_a", -0.3, -0.01, inner, STATE)
        draw.between(f"{at}.ssm_d", 0.5, 1, inner)
        draw.matrix(f"{at}.ssm_out", inner, WIDTH)
    return _SSM | {"attention.head_count": 0, "attention.head_count_kv": 0, "feed_forward_length": 0}


def _granite_hybrid(draw: Draw) -> dict[str, Any]:
    inner, mixed = 2 * WIDTH, 2 * WIDTH + 2 * GROUPS * STATE
    draw.ones("output_norm", WIDTH)
    for layer, kv_heads in enumerate(KV_HEADS_BY_LAYER):
        at = f"blk.{layer}"
        draw.ones(f"{at}.attn_norm", WIDTH)
        if kv_heads:
            _attention(draw, at)
        else:
            draw.matrix(f"{at}.ssm_in", WIDTH, inner + mixed + SSM_HEADS)
            draw.matrix(f"{at}.ssm_conv1d", CONV, mixed)
            draw.between(f"{at}.ssm_conv1d.bias", -0.1, 0.1, mixed)
            draw.between(f"{at}.ssm_dt.bias", -2, -1, SSM_HEADS)
            draw.between(f"{at}.ssm_a", -0.3, -0.01, SSM_HEADS, 1)
            draw.between(f"{at}.ssm_d", 0.5, 1, SSM_HEADS, 1)
            draw.ones(f"{at}.ssm_norm", GROUPS, inner // GROUPS)
            draw.matrix(f"{at}.ssm_out", inner, WIDTH)
        _feed_forward(draw, at)
    described = {"ssm.time_step_rank": SSM_HEADS, "ssm.group_count": GROUPS}
    return _SSM | described | {"attention.head_count_kv": KV_HEADS_BY_LAYER}


def _lfm2(draw: Draw) -> dict[str, Any]:
    draw.ones("token_embd_norm", WIDTH)
    for layer, kv_heads in enumerate(KV_HEADS_BY_LAYER):
        at = f"blk.{layer}"
        draw.ones(f"{at}.attn_norm", WIDTH)
        if kv_heads:
            _attention(draw, at)
            _head_norms(draw, at)
        else:
            draw.matrix(f"{at}.shortconv.conv", CONV, WIDTH)
            draw.matrix(f"{at}.shortconv.in_proj", WIDTH, 3 * WIDTH)
            draw.matrix(f"{at}.shortconv.out_proj", WIDTH, WIDTH)
        _feed_forward(draw, at)
    return {"shortconv.l_cache": CONV, "attention.head_count_kv": KV_HEADS_BY_LAYER}


def _gemma3(draw: Draw) -> dict[str, Any]:
    draw.ones("output_norm", WIDTH)
    for at in (f"blk.{layer}" for layer in range(LAYERS)):
        draw.ones(f"{at}.attn_norm", WIDTH)
        _attention(draw, at)
        _head_norms(draw, at)
        draw.ones(f"{at}.post_attention_norm", WIDTH)
        _feed_forward(draw, at)
        draw.ones(f"{at}.post_ffw_norm", WIDTH)
    lengths = {"attention.key_length": HEAD, "attention.value_length": HEAD}
    return lengths | {"attention.sliding_window": WINDOW, "attention.sliding_window_pattern": 2}


def _attention(draw: Draw, at: str) -> None:
    for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        draw.matrix(f"{at}.attn_{name}", WIDTH, heads * HEAD)
    draw.matrix(f"{at}.attn_output", WIDTH, WIDTH)


def _head_norms(draw: Draw, at: str) -> None:
    draw.ones(f"{at}.attn_q_norm", HEAD)
    draw.ones(f"{at}.attn_k_norm", HEAD)


def _feed_forward(draw: Draw, at: str) -> None:
    draw.ones(f"{at}.ffn_norm", WIDTH)
    draw.matrix(f"{at}.ffn_gate", WIDTH, INNER)
    draw.matrix(f"{at}.ffn_up", WIDTH, INNER)
    draw.matrix(f"{at}.ffn_down", INNER, WIDTH)


MAKERS: dict[str, Callable[[Draw], dict[str, Any]]] = {
    "mamba": _mamba,
    "granitehybrid": _granite_hybrid,
    "lfm2": _lfm2,
    "gemma3": _gemma3,
}
