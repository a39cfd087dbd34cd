"""Stage 4 · vectors process · an entry as Qdrant keeps it, the same in the embedded store and on a server.

    id       the entry's
    vector   384 numbers, cosine
    payload  {"format": 1, "partition": …, "query": …, "answer": "<JSON>", … every other field of Entry}

`format` changes when old points can no longer be read; a point of another format is passed over like no point at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from metamusesd.cache.base import Entry, encode_entry
from metamusesd.errors import StoreFailed

FORMAT = 1
KEYWORDS = ("partition", "tenant", "muse", "model", "tags")  # indexed: searched and purged by
INTEGERS = ("expires_ms", "used_ms")  # indexed: swept by
_FIELDS = tuple(name for name in Entry.__struct_fields__ if name not in ("id", "answer", "tags"))


def space_name(collection: str, identity: str) -> str:
    """What a collection is called on disk and on a server: vectors of two embedders never meet."""
    return f"{collection}-{identity}"


def payload_of(entry: Entry) -> dict[str, Any]:
    """Everything but the id. Raises StoreFailed for what is no text: Qdrant keeps JSON."""
    try:
        encode_entry(entry)  # half a surrogate pair ends here, and not somewhere in a client
        answer = entry.answer.decode()
    except UnicodeError as error:
        raise StoreFailed(f"an entry is not UTF-8: {error}") from error
    fields = {name: getattr(entry, name) for name in _FIELDS}
    return {"format": FORMAT, **fields, "answer": answer, "tags": list(entry.tags)}


def entry_of(id: str, payload: Mapping[str, Any] | None) -> Entry | None:
    """The inverse; None: not one of ours."""
    if payload is None or payload.get("format") != FORMAT:
        return None
    try:
        return msgspec.convert({**payload, "id": id, "answer": payload["answer"].encode()}, Entry)
    except (msgspec.ValidationError, KeyError, AttributeError):
        return None


def cosine(score: float) -> float:
    """Without what rounding put beyond the ends."""
    return min(1.0, max(-1.0, score))
