"""JSON schemas: what is accepted is kept to the letter, everything else is refused by keyword."""

from __future__ import annotations

from typing import Any

import pytest

from metamusesd.engines.bounds import check_bounds
from metamusesd.engines.disjoint import never
from metamusesd.engines.llamacpp.gbnf import schema_to_gbnf
from metamusesd.engines.schema import check_schema, plain_schema
from metamusesd.errors import InvalidGrammar

Schema = dict[str, Any]


def nested(depth: int) -> Schema:
    schema: Schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def doubled(depth: int) -> Schema:
    """A schema whose references double with each level."""
    pairs = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(depth)}
    return {"$ref": "#/$defs/d0", "$defs": pairs | {f"d{depth}": {"type": "null"}}}


PROPERTY = {"properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (nested(40), "nests deeper"),
        (doubled(14), "parts"),
        ({"enum": ["x" * 70_000]}, "bytes"),
        ({"const": float("nan")}, "plain JSON"),
        (PROPERTY | {"required": ["b"]}, "required names 'b'"),
        ({"type": "object", "required": ["b"]}, "required names 'b'"),
        ({"type": "integer", "minimum": 1}, "minimum is not supported"),
        ({"type": "number", "maximum": 1}, "maximum is not supported"),
        ({"type": "integer", "minLength": 1}, "minLength says nothing about integer"),
        ({"patternProperties": {"a": {}}}, "patternProperties is not supported"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {}}, "not is not supported"),
        ({"allOf": [{"type": "string"}, {"type": "object"}]}, "allOf is supported for objects"),
        ({"allOf": [PROPERTY, {"properties": {"a": {"type": "null"}}}]}, "two ways"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "two alternatives of oneOf"),
        ({"anyOf": [{"type": "null"}], "type": "string"}, "type beside anyOf"),
        ({"anyOf": []}, "anyOf is not a list"),
        ({"$ref": 5}, r"\$ref '5'"),
        ({"$ref": "#"}, r"\$ref '#' is not supported"),
        ({"$ref": "https://example.org/x.json"}, "not supported"),
        ({"$ref": "#/$defs/x"}, "refers to nothing"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"items": {"$ref": "#/$defs/x"}}}}, "recursive"),
        ({"type": "string", "maxLength": 2001}, "maxLength is 2001"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "larger"),
        ({"type": "string", "minLength": True}, "minLength is True"),
        ({"type": "string", "format": "email"}, "format 'email' is not supported"),
        ({"format": "date", "minLength": 3}, "format beside minLength"),
        ({"pattern": "a+"}, "anchored"),
        ({"pattern": "^(?=a)$"}, "nothing stands before"),
        ({"pattern": "^a)|(b$"}, "brackets do not match"),
        ({"pattern": "^(a$"}, "brackets do not match"),
        ({"pattern": r"^\bword$"}, "not known"),
        ({"type": "nonsense"}, "type 'nonsense' does not exist"),
        ({"type": [["string"]]}, "does not exist"),
        ({"type": []}, "empty list"),
        ({"items": {}, "minLength": 1}, "without a type"),
        ({"properties": {"a": False}}, "false allows nothing"),
        ({"properties": {"a": 5}}, "it is no schema"),
        (PROPERTY | {"additionalProperties": {"type": "null"}}, "additionalProperties as a schema beside"),
        ({"type": "string", "enum": [1]}, "leaves no value"),
        ({"enum": []}, "leaves no value"),
        ({"items": False, "minItems": 1}, "items is false"),
        ({"prefixItems": [{}], "items": {}}, "items beside prefixItems"),
        ({"prefixItems": [{}], "minItems": 2}, "minItems"),
    ],
)
def test_what_would_not_be_kept_is_refused(schema: Schema, reason: str) -> None:
    """Each refusal names the keyword, in the schema's field, with a remedy and none of Python's own words."""
    with pytest.raises(InvalidGrammar, match=reason) as caught:
        schema_to_gbnf(check_schema(schema))
    assert caught.value.remedy
    assert "Error" not in caught.value.message


@pytest.mark.parametrize(
    ("schema", "plain"),
    [
        ({}, {"type": "any"}),
        ({"title": "x", "default": 3, "type": "integer"}, {"type": "integer"}),
        ({"maxLength": 2000}, {"type": "string", "minLength": 0, "maxLength": 2000}),
        ({"items": False}, {"type": "array", "items": {"type": "any"}, "maxItems": 0}),
        ({"type": "object", "additionalProperties": True}, {"type": "object"}),
        ({"type": ["string", "null"]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ({"type": ["string", "null"], "enum": ["a", None, 1]}, {"enum": ["a", None]}),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"const": 1}}}, {"enum": [1]}),
        ({"allOf": [{"$ref": "#/definitions/x"}], "definitions": {"x": {"const": 1}}}, {"enum": [1]}),
    ],
)
def test_the_plain_form(schema: Schema, plain: Schema) -> None:
    """Annotations go, references and shorthands are written out."""
    assert plain_schema(schema) == plain


def test_all_of_objects_is_one_object() -> None:
    """Properties of all parts are there, and what any part requires is required."""
    other = {"properties": {"b": {"type": "null"}}, "required": ["b"]}
    merged = plain_schema({"allOf": [PROPERTY, other], "type": "object"})
    assert list(merged["properties"]) == ["a", "b"]
    assert merged["required"] == ["b"]


def test_one_of_needs_alternatives_that_exclude_each_other() -> None:
    """Types, constants, a tag, or a required property that the other does not declare keep alternatives apart."""

    def tagged(kind: str) -> Schema:
        return {"properties": {"kind": {"const": kind}}, "required": ["kind"]}

    def having(name: str) -> Schema:
        return {"properties": {name: {"type": "null"}}, "required": [name]}

    plain_schema({"oneOf": [{"type": "string"}, {"type": "null"}, {"enum": [1, 2]}]})
    plain_schema({"oneOf": [tagged("a"), tagged("b")]})
    plain_schema({"oneOf": [having("a"), having("b")]})
    assert not never({"enum": [1]}, {"enum": [1.0]})
    assert not never({"type": "any"}, {"type": "null"})


def test_one_property_of_any_name_does_not_disturb_the_grammar() -> None:
    """Names and values with quotes, backslashes, line ends and NUL are literals, and no grammar."""
    text = schema_to_gbnf(check_schema({"properties": {'"\\\n\0': {"const": 'x" | root'}}}))
    assert r'"\"\\\"\\\\\\n\\u0000\""' in text
    assert r'"\"x\\\" | root\""' in text
    check_bounds(text)
