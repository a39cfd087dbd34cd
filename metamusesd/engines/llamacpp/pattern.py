"""Stage 8 · worker · a regular expression of a JSON schema as the body of a GBNF rule, inside a JSON string.

Known: literals, `.`, classes, groups, `|`, and the quantifiers `* + ? {n} {n,} {n,m}`, between `^` and `$`. What JSON
would have to escape (quotes, backslashes, control characters) is generated where it is named alone, and left out of
classes and `.`: what comes out always matches, and is always JSON.
"""

from __future__ import annotations

import re

from metamusesd.engines.bounds import MAX_REPEATS
from metamusesd.errors import InvalidGrammar

MAX_PATTERN = 4096  # characters

Ranges = list[tuple[int, int]]

_TOKEN = re.compile(r"\\.|\[\^?(?:\\.|[^\]\\])*\]|\(\?:|\{\d+(?:,\d*)?\}|.", re.DOTALL)
_MEMBER = re.compile(r"\\.|.", re.DOTALL)
_SETS: dict[str, Ranges] = {
    "d": [(48, 57)],
    "w": [(48, 57), (65, 90), (95, 95), (97, 122)],
    "s": [(32, 32)],
}
_UNSAFE: Ranges = [(0, 31), (34, 34), (92, 92), (127, 127), (0xD800, 0xDFFF)]
_CONTROL = {"n": "\n", "r": "\r", "t": "\t", "f": "\f"}
_ESCAPED = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f"}


def pattern_to_gbnf(pattern: str) -> str:
    """The expression, quotes not included. Raises InvalidGrammar for what it does not know."""
    if len(pattern) > MAX_PATTERN:
        raise _refusal(pattern, f"it is longer than {MAX_PATTERN} characters", "shorten it")
    tokens = _TOKEN.findall(pattern)
    if tokens[:1] != ["^"] or tokens[-1:] != ["$"] or len(tokens) < 2:
        raise _refusal(pattern, "it is not anchored", "let it begin with ^ and end with $")
    _check_groups(pattern, tokens)
    parts: list[str] = []
    last = ""
    for word in tokens[1:-1]:
        quantifies = word in ("*", "+", "?") or (word[0] == "{" and len(word) > 1)
        if quantifies and last == "quantifier" and word == "?":
            last = ""  # lazy: the same texts match
            continue
        if quantifies and last != "atom":
            raise _refusal(pattern, f"nothing stands before {word}", "let each quantifier follow one part")
        parts.append(_part(pattern, word))
        last = "quantifier" if quantifies else "" if word in ("(", "(?:", "|") else "atom"
    return " ".join(parts) or '""'


def _check_groups(pattern: str, tokens: list[str]) -> None:
    """DANGER: a bracket that closes more than was opened would end the quotes around the whole."""
    depth = 0
    for word in tokens:
        depth += (word in ("(", "(?:")) - (word == ")")
        if depth < 0:
            break
    if depth:
        raise _refusal(pattern, "its brackets do not match", "close each group once, or escape brackets")


def _part(pattern: str, word: str) -> str:
    """One word: an atom, a quantifier, or a bracket."""
    if word == ".":
        return _written(_UNSAFE, "^")
    if word in ("(", "(?:"):
        return "("
    if word in (")", "|", "*", "+", "?"):
        return word
    if word[0] == "[" and len(word) > 1:
        return _class(pattern, word[1:-1])
    if word[0] == "{" and len(word) > 1:
        return _quantifier(pattern, word)
    if word in ("^", "$", "[", "]", "{", "}"):
        raise _refusal(pattern, f"{word} cannot stand there", "escape it with a backslash")
    if word[0] == "\\" and word[1:] in _SETS:
        return _written(_SETS[word[1:]])
    letter = _letter(pattern, word)
    if letter not in _ESCAPED and ord(letter) < 32:
        raise _refusal(pattern, "it names a control character", "leave it out")
    text = _ESCAPED.get(letter, letter).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _quantifier(pattern: str, word: str) -> str:
    counts = [int(digits[:9]) for digits in re.findall(r"\d+", word)]
    if max(counts) > MAX_REPEATS or counts != sorted(counts):
        raise _refusal(pattern, f"{word} is out of range", f"repeat at most {MAX_REPEATS} times")
    return word


def _letter(pattern: str, word: str) -> str:
    """The character that a literal or an escape stands for."""
    if word[0] != "\\":
        return word
    name = word[1:]
    if name in _CONTROL:
        return _CONTROL[name]
    if not name or name.isalnum():
        raise _refusal(pattern, f"{word} is not known", "use literals, classes, groups, | and quantifiers")
    return name


def _class(pattern: str, text: str) -> str:
    """A character class without what JSON would have to escape."""
    negated = text.startswith("^")
    ranges = _members(pattern, _MEMBER.findall(text[negated:]))
    if negated:
        return _written(ranges + _UNSAFE, "^")
    for unsafe in _UNSAFE:
        ranges = _without(ranges, unsafe)
    if not ranges:
        raise _refusal(pattern, f"[{text}] holds nothing that JSON shows unescaped", "name other characters")
    return _written(ranges)


def _members(pattern: str, members: list[str]) -> Ranges:
    ranges: Ranges = []
    place = 0
    while place < len(members):
        member = members[place]
        if member[0] == "\\" and member[1:] in _SETS:
            ranges += _SETS[member[1:]]
            place += 1
            continue
        low = high = ord(_letter(pattern, member))
        if members[place + 1 : place + 2] == ["-"] and place + 2 < len(members):
            high = ord(_letter(pattern, members[place + 2]))
            place += 2
        if high < low:
            raise _refusal(pattern, f"{chr(low)}-{chr(high)} runs backwards", "write the lower character first")
        ranges.append((low, high))
        place += 1
    return ranges


def _without(ranges: Ranges, hole: tuple[int, int]) -> Ranges:
    pieces = [piece for low, high in ranges for piece in ((low, min(high, hole[0] - 1)), (max(low, hole[1] + 1), high))]
    return [(low, high) for low, high in dict.fromkeys(pieces) if low <= high]


def _written(ranges: Ranges, negation: str = "") -> str:
    return f"[{negation}" + "".join(f"\\U{low:08X}-\\U{high:08X}" for low, high in ranges) + "]"


def _refusal(pattern: str, problem: str, remedy: str) -> InvalidGrammar:
    return InvalidGrammar(f"pattern {pattern[:80]!r} is not supported: {problem}", remedy=remedy)
