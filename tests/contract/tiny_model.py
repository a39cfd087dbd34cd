"""A directory of safetensors that loads in a moment: a llama of two layers, drawn weights, a token for each byte.

What it says is noise, bytes that are no characters among it; so it shows what an engine does, and nothing of a model.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from metamusesd.engines.template import CHATML

CONTROLS = ("<|im_start|>", "<|im_end|>", "<|begin|>", "<|endoftext|>")
VOCABULARY = 256 + len(CONTROLS)
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
WIDTH, INNER, LAYERS, HEADS, CONTEXT = 64, 128, 2, 4, 8192


def make_tiny_model(place: Path, template: str = CHATML, begins: bool = False) -> Path:
    """Write the files. `begins`: its tokenizer puts <|begin|> before every text."""
    place.mkdir(exist_ok=True)
    _write(place / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 258, "eos_token_id": [257, 259],
        "torch_dtype": "float32",
    })  # fmt: skip
    begin = {"__type": "AddedToken", "content": "<|begin|>"} | FLAGS
    _write(
        place / "tokenizer_config.json",
        {"bos_token": begin, "eos_token": "<|im_end|>", "chat_template": template},
    )
    _write(place / "tokenizer.json", _tokenizer(begins))
    _write_tensors(place / "model.safetensors")
    return place


def _tokenizer(begins: bool) -> dict[str, object]:
    spelt = {chr(byte): byte for byte in (*range(33, 127), *range(161, 173), *range(174, 256))}
    rest = [byte for byte in range(256) if byte not in spelt.values()]
    spelt |= {chr(256 + place): byte for place, byte in enumerate(rest)}  # as all byte-level tokenizers do
    begin, text = {"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    named = {"<|begin|>": {"id": "<|begin|>", "ids": [258], "tokens": ["<|begin|>"]}}
    pairs = [begin, text, {"Sequence": {"id": "B", "type_id": 1}}]
    before = {"type": "TemplateProcessing", "single": [begin, text], "pair": pairs, "special_tokens": named}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": level,
        "decoder": level, "post_processor": before if begins else None,
        "added_tokens": [
            {"id": 256 + place, "content": text, "special": True} | FLAGS for place, text in enumerate(CONTROLS)
        ],
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "merges": [],
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": spelt | {text: 256 + place for place, text in enumerate(CONTROLS)},
        },
    }  # fmt: skip


def _write_tensors(file: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (WIDTH, INNER)}
        shapes |= {f"{at}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    draw, header, data = np.random.default_rng(1), {}, b""
    for name, shape in shapes.items():
        tensor = np.ones(shape) if len(shape) == 1 else draw.normal(0, 0.3, shape)
        raw = tensor.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + data)


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content), "utf-8")
