"""Stage 0 · any process · the formats that a GGUF file can be requantized to, and which are worth a try. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from metamusesd.gguf import Header

EMBEDDING_BITS = 8.5  # llama.cpp keeps the token embeddings, or the output that they are tied to, at this at most
SPARE_BYTES = 16 << 20  # vocabulary, template


@dataclass(frozen=True, slots=True)
class Format:
    """One format. `rows`: a tensor has rows of a multiple of so many weights, or llama.cpp takes another format."""

    file_type: int  # llama_ftype
    bits: float  # of a weight
    rows: int = 32


FORMATS = {
    "Q8_0": Format(7, 8.5),
    "Q6_K": Format(18, 6.56, 256),
    "Q5_K_M": Format(17, 5.69, 256),
    "Q4_K_M": Format(15, 4.85, 256),
    "Q4_0": Format(2, 4.5),
    "IQ4_NL": Format(25, 4.5),
}


def candidates(header: Header) -> tuple[str, ...]:
    """What may be faster than this file, and about as good. Requantizing makes no weight better: only those of fewer
    bits, and Q8_0, whose kernels may pay for its size. Four bits made of four others were 15 to 45 % worse."""
    own = _nominal_bits(header.quantization)
    return tuple(
        name for name, form in FORMATS.items()
        if name != header.quantization and (int(form.bits) < own or name == "Q8_0") and _fits(header, form)
    )  # fmt: skip


def bytes_at_most(header: Header, form: str) -> int:
    """About how large the file will be, rather too much."""
    vocabulary, width = header.entries.get("tokenizer.ggml.tokens"), header.of_architecture("embedding_length")
    tokens = vocabulary if isinstance(vocabulary, int) else len(vocabulary or ())
    embedding = min(header.parameters, tokens * width if isinstance(width, int) else 0)
    bits = embedding * max(EMBEDDING_BITS, FORMATS[form].bits) + (header.parameters - embedding) * FORMATS[form].bits
    return int(bits / 8 * 1.05) + SPARE_BYTES


def _nominal_bits(quantization: str) -> int:
    """4 of Q4_1, 16 of BF16; 0: the header does not say."""
    found = re.fullmatch(r"(?:BF|F|IQ|Q)(\d+)(?:_\w+)?", quantization)
    return int(found[1]) if found else 0


def _fits(header: Header, form: Format) -> bool:
    """Whether most tensors can have that format: their rows are as long as these."""
    parts = ("embedding", "feed_forward", "expert_feed_forward")
    lengths = (header.of_architecture(f"{part}_length") for part in parts)
    return all(length % form.rows == 0 for length in lengths if isinstance(length, int))
