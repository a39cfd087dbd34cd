"""Stage 8 · worker · which JSON schemas are kept to the letter, brought into one plain form; the others are refused.

The plain form has no references, annotations or shorthands, and llamacpp/gbnf.py can write each of its nodes:

    {"enum": […]}   {"anyOf": […]}   {"type": any | null | boolean | integer | number | string | array | object}
    string: pattern | format | minLength, maxLength      array: items, minItems, maxItems | prefixItems
    object: properties, required, strict | additionalProperties

What is generated is valid by the schema, though not all that is valid can be generated: an object with declared
properties has no others, `prefixItems` come all and no more. A keyword that nothing would enforce is a refusal.
"""

from __future__ import annotations

import json
from typing import Any

from metamusesd.engines.bounds import MAX_REPEATS
from metamusesd.engines.disjoint import has_type, never
from metamusesd.errors import InvalidGrammar

MAX_SCHEMA_BYTES = 65_536
MAX_SCHEMA_DEPTH = 32
MAX_PARTS = 4096  # with every reference written out
MAX_PROPERTIES = 256

ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"$schema", "$id", "$comment", "$defs", "definitions"}
)
FORMATS = ("date", "time", "date-time", "uuid")
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
KEYWORDS = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
}
SPECIAL = frozenset({"$ref", "enum", "const", "anyOf", "oneOf", "allOf"})
KNOWN = frozenset({"type"}).union(ANNOTATIONS, SPECIAL, *KEYWORDS.values())

Node = dict[str, Any]


def check_schema(schema: dict[str, Any]) -> str:
    """The schema as JSON text, or InvalidGrammar when it is too long or no JSON."""
    try:
        text = json.dumps(schema, allow_nan=False)
    except (ValueError, RecursionError, TypeError) as error:
        raise refusal("$", "it is not plain JSON", "use finite numbers and less nesting") from error
    if len(text) > MAX_SCHEMA_BYTES:
        raise refusal("$", f"it has {len(text)} bytes", f"use at most {MAX_SCHEMA_BYTES}")
    return text


def plain_schema(schema: Any) -> Node:
    """The plain form. Raises InvalidGrammar, which names the place, the keyword and what to do."""
    return _Reader(schema).read(schema, "$", 1, ())


def refusal(at: str, problem: str, remedy: str) -> InvalidGrammar:
    """The error for one place of a schema."""
    return InvalidGrammar(f"the JSON schema at {at[:200]}: {problem}", field="params.json_schema", remedy=remedy)


class _Reader:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._parts = 0

    def read(self, node: Any, at: str, depth: int, refs: tuple[str, ...]) -> Node:
        """The plain form of `node`; `refs` are the references that led here."""
        self._parts += 1
        if depth > MAX_SCHEMA_DEPTH:
            raise refusal(at, f"it nests deeper than {MAX_SCHEMA_DEPTH}", "nest less")
        if self._parts > MAX_PARTS:
            raise refusal(at, f"with its references written out it has over {MAX_PARTS} parts", "simplify it")
        words = _words(node, at)
        special = sorted(SPECIAL & words.keys())
        if len(special) > 1:
            raise refusal(at, f"{special[0]} beside {special[1]} is not supported", "use one of them")
        match special:
            case ["$ref"]:
                _alone("$ref", words, at)
                return self.read(self._target(words["$ref"], at, refs), at, depth + 1, (*refs, words["$ref"]))
            case ["enum" | "const"]:
                return _values(words, at)
            case ["anyOf" | "oneOf" as word]:
                _alone(word, words, at)
                return self._union(word, words[word], at, depth, refs)
            case ["allOf"]:
                return self._all(words, at, depth, refs)
        return self._typed(words, at, depth, refs)

    def _target(self, reference: Any, at: str, refs: tuple[str, ...]) -> Any:
        remedy = "refer to #/$defs/NAME or #/definitions/NAME of this schema"
        parts = reference.split("/") if isinstance(reference, str) else []
        if len(parts) != 3 or parts[0] != "#" or parts[1] not in ("$defs", "definitions"):
            raise refusal(at, f"$ref {str(reference)[:80]!r} is not supported", remedy)
        if reference in refs:
            raise refusal(at, f"$ref {reference[:80]!r} is recursive", "write out as many levels as are needed")
        named = self._root.get(parts[1])
        name = parts[2].replace("~1", "/").replace("~0", "~")
        if not isinstance(named, dict) or name not in named:
            raise refusal(at, f"$ref {reference[:80]!r} refers to nothing", remedy)
        return named[name]

    def _union(self, word: str, choices: Any, at: str, depth: int, refs: tuple[str, ...]) -> Node:
        nodes = self._list(word, choices, at, depth, refs)
        if word == "oneOf":
            for place, node in enumerate(nodes):
                if not all(never(node, other) and never(other, node) for other in nodes[:place]):
                    raise refusal(
                        at,
                        "a value may match two alternatives of oneOf",
                        "use anyOf, or a property with distinct consts",
                    )
        return {"anyOf": nodes}

    def _list(self, word: str, values: Any, at: str, depth: int, refs: tuple[str, ...]) -> list[Node]:
        if not isinstance(values, list) or not values:
            raise refusal(at, f"{word} is not a list of schemas", "give at least one schema")
        return [self.read(value, f"{at}.{word}[{i}]", depth + 1, refs) for i, value in enumerate(values)]

    def _all(self, words: Node, at: str, depth: int, refs: tuple[str, ...]) -> Node:
        """One schema, or objects whose properties do not get into each other's way."""
        rest = {word: value for word, value in words.items() if word != "allOf"}
        nodes = self._list("allOf", words["allOf"], at, depth, refs)
        if rest:
            nodes.append(self._typed(rest, at, depth, refs))
        if len(nodes) == 1:
            return nodes[0]
        properties: Node = {}
        required: list[str] = []
        for node in nodes:
            if node.get("type") != "object" or "additionalProperties" in node or node.get("strict"):
                raise refusal(at, "allOf is supported for objects that allow other properties", "write one schema")
            for name, value in node.get("properties", {}).items():
                if properties.setdefault(name, value) != value:
                    raise refusal(at, f"allOf declares {name[:80]!r} in two ways", "declare it once")
            required += node.get("required", ())
        return _object(properties, required, False)

    def _typed(self, words: Node, at: str, depth: int, refs: tuple[str, ...]) -> Node:
        types = _types(words, at)
        for word in words:
            if word != "type" and not any(word in KEYWORDS.get(kind, ()) for kind in types):
                raise refusal(at, f"{word} says nothing about {' or '.join(types)}", f"leave out {word}")
        nodes = [self._of_type(kind, words, at, depth, refs) for kind in types]
        return nodes[0] if len(nodes) == 1 else {"anyOf": nodes}

    def _of_type(self, kind: str, words: Node, at: str, depth: int, refs: tuple[str, ...]) -> Node:
        own = {word: value for word, value in words.items() if word in KEYWORDS.get(kind, ())}
        if not own:
            return {"type": kind}
        if kind == "string":
            return _string(own, at)
        if kind == "array":
            return self._array(own, at, depth, refs)
        return self._properties(own, at, depth, refs)

    def _array(self, own: Node, at: str, depth: int, refs: tuple[str, ...]) -> Node:
        least, most = _range(own, "minItems", "maxItems", at)
        if isinstance(own.get("items"), list):
            raise refusal(at, "items is a list", "call it prefixItems")
        if "prefixItems" in own:
            if own.get("items", False) is not False:
                raise refusal(at, "items beside prefixItems is not supported", "leave it out, or say false")
            nodes = self._list("prefixItems", own["prefixItems"], at, depth, refs)
            if not least <= len(nodes) <= (len(nodes) if most is None else most):
                raise refusal(
                    at, f"there are {len(nodes)} prefixItems, which minItems or maxItems denies", "adapt them"
                )
            return {"type": "array", "prefixItems": nodes}
        if own.get("items") is False:
            if least:
                raise refusal(at, "items is false, and minItems wants some", "leave out one of them")
            return {"type": "array", "items": {"type": "any"}, "maxItems": 0}
        node: Node = {"type": "array", "items": self.read(own.get("items", True), f"{at}.items", depth + 1, refs)}
        return node | {"minItems": least} | ({} if most is None else {"maxItems": most})

    def _properties(self, own: Node, at: str, depth: int, refs: tuple[str, ...]) -> Node:
        declared, required = own.get("properties", {}), own.get("required", [])
        if not isinstance(declared, dict) or not isinstance(required, list):
            raise refusal(at, "properties is no object, or required no list", "see json-schema.org")
        if len(declared) > MAX_PROPERTIES:
            raise refusal(at, f"properties has {len(declared)} members", f"declare at most {MAX_PROPERTIES}")
        for name in required:
            if not isinstance(name, str) or name not in declared:
                raise refusal(at, f"required names {name!r:.80}, which properties does not declare", "declare it")
        more = own.get("additionalProperties", True)
        if declared and isinstance(more, dict) and more:
            raise refusal(
                at, "additionalProperties as a schema beside properties is not supported", "say false, or declare them"
            )
        if declared or more is False:
            nodes = {k: self.read(v, f"{at}.properties.{k}", depth + 1, refs) for k, v in declared.items()}
            return _object(nodes, required, more is False)
        if more is True or more == {}:
            return {"type": "object"}
        return {
            "type": "object",
            "additionalProperties": self.read(more, f"{at}.additionalProperties", depth + 1, refs),
        }


def _object(properties: Node, required: list[str], strict: bool) -> Node:
    if not properties and not strict:
        return {"type": "object"}
    return {"type": "object", "properties": properties, "required": required, "strict": strict}


def _words(node: Any, at: str) -> Node:
    """The keywords of `node` that constrain, all of them known."""
    if node is False:
        raise refusal(at, "false allows nothing", "leave it out")
    if not isinstance(node, dict) and node is not True:
        raise refusal(at, "it is no schema", "give an object")
    words = {} if node is True else node
    for word in words:
        if word not in KNOWN:
            raise refusal(at, f"{word[:80]} is not supported", _remedy(word))
    return {word: value for word, value in words.items() if word not in ANNOTATIONS}


def _remedy(word: str) -> str:
    if word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
        return "list the numbers with enum, or leave it out and check the answer"
    if word in ("patternProperties", "propertyNames", "minProperties", "maxProperties"):
        return "declare the properties by name, or leave it out and check the answer"
    if word == "nullable":
        return 'write "type": ["…", "null"]'
    return "leave it out and check the answer"


def _alone(word: str, words: Node, at: str) -> None:
    for other in words:
        if other != word:
            raise refusal(at, f"{other} beside {word} is not supported", f"move {other} into what {word} names")


def _types(words: Node, at: str) -> list[str]:
    if "type" not in words:
        kinds = [kind for kind, own in KEYWORDS.items() if own & words.keys()]
        if len(kinds) > 1:
            raise refusal(at, f"keywords of {' and '.join(kinds)} stand there without a type", "add type")
        return kinds or ["any"]
    named = words["type"] if isinstance(words["type"], list) else [words["type"]]
    for kind in named:
        if kind not in TYPES:
            raise refusal(at, f"type {kind!r:.80} does not exist", f"use one of {', '.join(TYPES)}")
    if not named:
        raise refusal(at, "type is an empty list", "name a type")
    return list(dict.fromkeys(named))


def _values(words: Node, at: str) -> Node:
    values = [words["const"]] if "const" in words else words["enum"]
    for other in words:
        if other not in ("const", "enum", "type"):
            raise refusal(at, f"{other} beside enum or const is not supported", "list only values that satisfy it")
    if "type" in words and isinstance(values, list):
        types = _types(words, at)
        values = [value for value in values if any(has_type(value, kind) for kind in types)]
    if not isinstance(values, list) or not values:
        raise refusal(at, "enum or const leaves no value", "list at least one value of the type")
    return {"enum": values}


def _string(own: Node, at: str) -> Node:
    ways = [way for way in ("pattern", "format") if way in own]
    if ways and len(own) > 1:
        raise refusal(
            at, f"{ways[0]} beside {' and '.join(sorted(own.keys() - {ways[0]}))} is not supported", "use one"
        )
    if "format" in own and own["format"] not in FORMATS:
        raise refusal(at, f"format {own['format']!r:.80} is not supported", f"use one of {', '.join(FORMATS)}")
    if "pattern" in own and not isinstance(own["pattern"], str):
        raise refusal(at, "pattern is no text", "give a regular expression")
    if ways:
        return {"type": "string", **own}
    least, most = _range(own, "minLength", "maxLength", at)
    return {"type": "string", "minLength": least} | ({} if most is None else {"maxLength": most})


def _range(own: Node, low: str, high: str, at: str) -> tuple[int, int | None]:
    """The two bounds, checked; `high` may be absent."""
    for word in (low, high):
        value = own.get(word, 0)
        if type(value) is not int or not 0 <= value <= MAX_REPEATS:
            raise refusal(
                at, f"{word} is {value!r:.80}", f"use a whole number from 0 to {MAX_REPEATS}, or leave it out"
            )
    least, most = own.get(low, 0), own.get(high)
    if most is not None and least > most:
        raise refusal(at, f"{low} is larger than {high}", "exchange them")
    return least, most
