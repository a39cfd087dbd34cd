"""Stage 8 · worker · a JSON schema, brought into plain form by engines/schema.py, for mistral.rs' grammar compiler.

What is accepted, and refused by keyword, is the same as on llama.cpp. The plain form is written out as a schema again:
objects are closed, and between the parts of a value stands one blank, for small models otherwise lose themselves in
white space.
"""

from __future__ import annotations

import json
from typing import Any

from metamusesd.engines.schema import check_schema, plain_schema

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def guidance(schema: dict[str, Any]) -> str:
    """The schema's text for mistral.rs. Raises InvalidGrammar for whatever would not be kept."""
    return json.dumps(_closed(plain_schema(json.loads(check_schema(schema)))) | {"x-guidance": SPACING})


def _closed(node: dict[str, Any]) -> dict[str, Any]:
    """A node of the plain form as JSON schema that allows nothing else."""
    if "anyOf" in node:
        return {"anyOf": [_closed(choice) for choice in node["anyOf"]]}
    if node.get("type") == "any":
        return {}
    if "prefixItems" in node:
        items = [_closed(item) for item in node["prefixItems"]]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items), "maxItems": len(items)}
    if "items" in node:
        return node | {"items": False if node.get("maxItems") == 0 else _closed(node["items"])}
    if "properties" in node:
        properties = {name: _closed(value) for name, value in node["properties"].items()}
        return {
            "type": "object",
            "properties": properties,
            "required": node["required"],
            "additionalProperties": False,
        }
    if "additionalProperties" in node:
        return {"type": "object", "additionalProperties": _closed(node["additionalProperties"])}
    return node
