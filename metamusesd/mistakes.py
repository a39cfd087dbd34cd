"""Stage 1 · any process · a body that is no request: which field, what is wrong with it, what would be right. Pure."""

from __future__ import annotations

import json

import msgspec

from metamusesd.errors import InvalidRequest


def check_bytes(field: str, value: object) -> None:
    """The encoder writes bytes as base64, and that is what the model would be asked."""
    if isinstance(value, bytes | bytearray | memoryview):
        raise InvalidRequest(field, "bytes are no text", "decode them and give a str")
    if isinstance(value, dict):
        for name, part in value.items():
            check_bytes(f"{field}.{name}" if field else str(name), part)
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            check_bytes(f"{field}[{number}]", part)


def no_json(body: object, error: Exception) -> InvalidRequest:
    """Say what is wrong with a body that is no JSON for us; a lone surrogate by the field that holds it."""
    if isinstance(error, RecursionError):
        return InvalidRequest("body", "it nests too deep to be read", "send a flatter JSON object")
    if field := _lone_surrogate(body):
        return InvalidRequest(field, "contains a lone surrogate, half a character", "send whole characters in UTF-8")
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest("body", f"it is not valid UTF-8: {error.reason}", "send one JSON object in UTF-8")
    if isinstance(error, TypeError | OverflowError):
        return InvalidRequest("body", f"it is not JSON: {error}", "send plain JSON values")
    return InvalidRequest("body", f"it is not JSON: {error}", "send one JSON object in UTF-8")


def _lone_surrogate(body: object) -> str:
    """The field whose text (or whose own name) cannot be encoded; empty if there is none, or none can be found."""
    try:
        todo = [("", json.loads(body) if isinstance(body, bytes | str) else msgspec.to_builtins(body))]
    except (ValueError, TypeError, RecursionError):
        return ""
    while todo:
        place, value = todo.pop()
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            return place.lstrip(".").encode("ascii", "replace").decode()[:200] or "body"
        if isinstance(value, dict):
            todo += [(f"{place}.{name}", pair) for name, inner in value.items() for pair in (name, inner)]
        elif isinstance(value, list):
            todo += [(f"{place}[{index}]", inner) for index, inner in enumerate(value)]
    return ""


def explain(text: str) -> InvalidRequest:
    """Turn msgspec's "Expected `int`, got `str` - at `$.params.seed`" into field, problem, remedy."""
    problem, _, place = text.partition(" - at `$")
    field = place.rstrip("`").lstrip(".").replace("[...]", "[]") or "body"
    if problem.startswith(("Object contains unknown field", "Object missing required field")):
        name = problem.split("`")[1]
        whole = name if field == "body" else f"{field}.{name}"
        if "unknown" in problem:
            return InvalidRequest(whole, "unknown field", "remove it or correct its name")
        return InvalidRequest(whole, "missing", "give it")
    remedy = _CHOICES.get(field.rpartition(".")[2], "an allowed value")
    if problem.startswith("Expected"):
        remedy = _wanted(problem.removeprefix("Expected ").split(", got")[0])
    return InvalidRequest(field, (problem[0].lower() + problem[1:]).replace("`", ""), f"give {remedy}")


def _wanted(kind: str) -> str:
    """msgspec's words for what it expected, in plain ones."""
    for pattern, words in _PATTERNS.items():
        if pattern in kind:
            return words
    names, _, bound = kind.lstrip("`").partition("`")
    return " or ".join(_KINDS.get(name, name) for name in names.split(" | ")) + bound


_KINDS = {"int": "an integer", "str": "a text", "float": "a number", "array": "a list", "object": "an object",
          "bool": "true or false"}  # fmt: skip
_CHOICES = {
    "role": "system, user, assistant or tool",
    "scope": "auto, tenant, muse or user",
    "on_restart": "restart or fail",
    "truncate": "never or oldest",
}
_PATTERNS = {
    "[A-Za-z0-9_.:-]{1,128}": "1 to 128 of A-Z a-z 0-9 _ . : -",
    "[A-Za-z0-9_.-]{1,64}": "1 to 64 of A-Z a-z 0-9 _ . -",
}
