"""Stage 8 · worker · whether what is generated for one plain schema is never valid by another: what oneOf asks for."""

from __future__ import annotations

import json
from typing import Any

Node = dict[str, Any]


def never(made: Node, other: Node) -> bool:
    """True if no value that is generated for `made` is valid by `other`. False also means: not known."""
    if "anyOf" in made:
        return all(never(choice, other) for choice in made["anyOf"])
    if "anyOf" in other:
        return all(never(made, choice) for choice in other["anyOf"])
    if "enum" in made and "enum" in other:
        return not _texts(made["enum"]) & _texts(other["enum"])
    if "enum" in made or "enum" in other:
        values, kind = (made["enum"], other["type"]) if "enum" in made else (other["enum"], made["type"])
        return not any(has_type(value, kind) for value in values)
    kinds = {made["type"], other["type"]}
    if kinds == {"object"}:
        return _never_object(made, other)
    return len(kinds) == 2 and "any" not in kinds and kinds != {"integer", "number"}


def _never_object(made: Node, other: Node) -> bool:
    if "properties" not in made or "properties" not in other:
        return False
    own, others = made["properties"], other["properties"]
    if set(other["required"]) - own.keys() or (other["strict"] and set(made["required"]) - others.keys()):
        return True
    return any(name in others and never(own[name], others[name]) for name in made["required"])


def _texts(values: list[Any]) -> set[str]:
    """Each value in one spelling: 1.0 is 1."""
    return {json.dumps(int(value) if has_type(value, "integer") else value, sort_keys=True) for value in values}


def has_type(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a JSON schema's type."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "number":
            return number
        case "integer":
            return number and (isinstance(value, int) or value.is_integer())
        case "string" | "array" | "object":
            return isinstance(value, {"string": str, "array": list, "object": dict}[kind])
    return True
