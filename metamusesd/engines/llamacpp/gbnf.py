"""Stage 8 · worker · write a JSON schema, brought into plain form by schema.py, as a GBNF grammar.

Objects are closed: they have the properties that are declared, required ones first. Between the parts of a value stands
one blank at most, for small models otherwise lose themselves in white space.
"""

from __future__ import annotations

import json
from typing import Any

from metamusesd.engines.llamacpp.pattern import pattern_to_gbnf
from metamusesd.engines.schema import plain_schema

_PRIMITIVES = r"""
any ::= object | array | string | number | boolean | null
object ::= "{" ws (pair comma-pair* ws)? "}"
pair ::= string ":" ws any
comma-pair ::= "," ws pair
array ::= "[" ws (any comma-any* ws)? "]"
comma-any ::= "," ws any
string ::= "\"" char* "\""
char ::= [^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" hex hex hex hex)
hex ::= [0-9a-fA-F]
integer ::= "-"? ("0" | [1-9] [0-9]{0,14})
number ::= integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?
boolean ::= "true" | "false"
null ::= "null"
ws ::= " "?
year ::= [0-9]{4}
to28 ::= "0" [1-9] | "1" [0-9] | "2" [0-8]
to30 ::= to28 | "29" | "30"
day ::= ("0" [13578] | "1" [02]) "-" (to30 | "31") | ("0" [469] | "11") "-" to30 | "02-" to28
date ::= year "-" day
clock ::= ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]
time ::= clock ":" [0-5] [0-9] ("." [0-9]{3})? ("Z" | [-+] clock)
uuid ::= hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}
"""
_FORMATS = {"date": "date", "time": "time", "date-time": 'date "T" time', "uuid": "uuid"}


def schema_to_gbnf(text: str) -> str:
    """The grammar for a JSON schema's text. Raises InvalidGrammar for whatever would not be kept."""
    writer = _Writer()
    root = writer.node(plain_schema(json.loads(text)))
    return f"root ::= {root}\n" + "".join(f"{name} ::= {body}\n" for body, name in writer.names.items()) + _PRIMITIVES


class _Writer:
    """Rules by what they say, so that equal parts share one."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def rule(self, body: str) -> str:
        return self.names.setdefault(body, f"r{len(self.names)}")

    def node(self, node: dict[str, Any]) -> str:
        """The name of a rule for `node`."""
        if "enum" in node:
            return self.rule(" | ".join(_literal(value) for value in node["enum"]))
        if "anyOf" in node:
            return self.rule(" | ".join(self.node(choice) for choice in node["anyOf"]))
        match node["type"]:
            case "string":
                return self._string(node)
            case "array" if len(node) > 1:
                return self._array(node)
            case "object" if len(node) > 1:
                return self._object(node)
            case kind:
                return str(kind)

    def _string(self, node: dict[str, Any]) -> str:
        if "pattern" in node:
            body = f"({pattern_to_gbnf(node['pattern'])})"
        elif "format" in node:
            body = _FORMATS[node["format"]]
        elif len(node) > 1:
            body = _repeated("char", node.get("minLength", 0), node.get("maxLength"))
        else:
            return "string"
        return self.rule(f'"\\"" {body} "\\""')

    def _array(self, node: dict[str, Any]) -> str:
        if "prefixItems" in node:
            parts = ' "," ws '.join(self.node(item) for item in node["prefixItems"])
            return self.rule(f'"[" ws {parts} ws "]"')
        least, most = node.get("minItems", 0), node.get("maxItems")
        if most == 0:
            return self.rule('"[" ws "]"')
        item = self.node(node["items"])
        more = _repeated(self.rule(f'"," ws {item}'), max(0, least - 1), most - 1 if most else None)
        body = f"{item} {more} ws"
        return self.rule(f'"[" ws {body} "]"' if least else f'"[" ws ({body})? "]"')

    def _object(self, node: dict[str, Any]) -> str:
        if "additionalProperties" in node:
            pair = self.rule(f'string ":" ws {self.node(node["additionalProperties"])}')
            more = self.rule(f'"," ws {pair}')
            return self.rule(f'"{{" ws ({pair} {more}* ws)? "}}"')
        pairs = {name: self._pair(name, value) for name, value in node["properties"].items()}
        required = [pair for name, pair in pairs.items() if name in node["required"]]
        optional = [pair for name, pair in pairs.items() if name not in node["required"]]
        tails = self._tails(optional)
        if required:
            members = ' "," ws '.join(required) + f" {tails[0]} ws"
        else:
            choices = [f"{pair} {tail}" for pair, tail in zip(optional, tails[1:], strict=True)]
            members = f"(({' | '.join(choices)}) ws)?" if choices else ""
        return self.rule(f'"{{" ws {members} "}}"')

    def _pair(self, name: str, value: dict[str, Any]) -> str:
        return self.rule(f'{_literal(name)} ws ":" ws {self.node(value)}')

    def _tails(self, optional: list[str]) -> list[str]:
        """For each place in `optional` a rule for what may follow from there on; nothing after the last."""
        tails = [""]
        for pair in reversed(optional):
            tails.append(self.rule(f'("," ws {pair})? {tails[-1]}'))
        return tails[::-1]


def _repeated(what: str, least: int, most: int | None) -> str:
    return f"{what}{{{least},{'' if most is None else most}}}" if most != 0 else '""'


def _literal(value: Any) -> str:
    """A JSON value as a GBNF literal, non-ASCII letters as they are."""
    text = json.dumps(value, ensure_ascii=False)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
