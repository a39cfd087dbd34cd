"""Stage 8 · worker · what a model says of itself, read from its files: a GGUF file, or a directory of safetensors.

    DIRECTORY/config.json  tokenizer.json  tokenizer_config.json  [chat_template.jinja]  *.safetensors

Files are input like any other: whatever is missing or broken in them is a typed error that names the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metamusesd.errors import ModelLoadFailed, ModelNotFound
from metamusesd.gguf import read_header

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
CONTROL, USER_DEFINED = 3, 4  # of the types in a GGUF file
MAX_JSON_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """`controls`: the spellings that mistral.rs reads as control tokens wherever they stand, users' text included."""

    architecture: str
    vocabulary: int
    trained_context: int  # 0: it does not say
    template: str
    bos: str
    eos: str
    begins: bool  # a prompt begins with `bos`, whether or not the template writes it
    controls: frozenset[str]


def read_source(path: str) -> Source:
    """Raises ModelNotFound or ModelLoadFailed."""
    place = Path(path)
    if not place.exists():
        raise ModelNotFound(f"{path}: no such file or directory; correct models.*.file")
    return _of_directory(place) if place.is_dir() else _of_gguf(path)


def _of_gguf(path: str) -> Source:
    header = read_header(path, whole=(TOKENS, TYPES))
    entries = header.entries
    tokens, types = entries.get(TOKENS), entries.get(TYPES, [])
    if not isinstance(tokens, list) or not isinstance(types, list):
        raise ModelLoadFailed(f"{path}: it has no vocabulary; use a GGUF file of a model that generates text")
    template = str(entries.get("tokenizer.chat_template", ""))
    kinds = zip(tokens, types, strict=False)
    named = [(text, kind == CONTROL) for text, kind in kinds if kind in (CONTROL, USER_DEFINED)]
    bos, eos = (_text(tokens, entries.get(f"tokenizer.ggml.{which}_token_id")) for which in ("bos", "eos"))
    begins = bool(entries.get("tokenizer.ggml.add_bos_token", False)) and bool(bos)
    return Source(
        header.architecture, len(tokens), header.trained_context, template, bos, eos, begins, _controls(named, template)
    )


def _text(tokens: list[str], token: Any) -> str:
    return tokens[token] if isinstance(token, int) and 0 <= token < len(tokens) else ""


def _of_directory(place: Path) -> Source:
    if not any(place.glob("*.safetensors")):
        raise ModelLoadFailed(f"{place}: it holds no *.safetensors; name a GGUF file or a directory with such files")
    config = _json(place / "config.json")
    names = config.get("architectures") or [str(config.get("model_type", ""))]
    words = _json(place / "tokenizer_config.json") if (place / "tokenizer_config.json").exists() else {}
    added = _json(place / "tokenizer.json").get("added_tokens") or []
    template = _template(place, words)
    return Source(
        architecture=str(names[0]),
        vocabulary=_vocabulary(config, place),
        trained_context=_of_text(config, "max_position_embeddings") or 0,
        template=template,
        bos=_spelling(words.get("bos_token")),
        eos=_spelling(words.get("eos_token")),
        begins=False,
        controls=_controls([(str(each["content"]), bool(each.get("special"))) for each in added], template),
    )


def _vocabulary(config: dict[str, Any], place: Path) -> int:
    size = _of_text(config, "vocab_size")
    if size is None:
        raise ModelLoadFailed(f"{place / 'config.json'}: it has no vocab_size, a whole number above 0")
    return size


def _of_text(config: dict[str, Any], key: str) -> int | None:
    """A number above 0 of the model, or of the part of it that makes text."""
    inner = config.get("text_config")
    value = config.get(key, inner.get(key) if isinstance(inner, dict) else None)
    return value if type(value) is int and value > 0 else None


def _template(place: Path, words: dict[str, Any]) -> str:
    """The chat template: a file of its own, or among the tokenizer's words, where it may be one of several."""
    if (place / "chat_template.jinja").exists():
        return (place / "chat_template.jinja").read_text("utf-8")
    found = words.get("chat_template") or ""
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default") or ""
    return str(found)


def _spelling(token: Any) -> str:
    """A token stands as text, or as an object with its text and flags."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


def _controls(named: Iterable[tuple[str, bool]], template: str) -> frozenset[str]:
    """Of (spelling, whether it is special): the special ones, and those that the template is made of."""
    return frozenset(text for text, special in named if text and (special or text in template))


def _json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ModelLoadFailed(f"{file}: over {MAX_JSON_BYTES} bytes; bring the model's own file")
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadFailed(f"{file}: cannot be read: {error}; bring the model's own file") from error
    if not isinstance(content, dict):
        raise ModelLoadFailed(f"{file}: is no JSON object; bring the model's own file")
    return content
