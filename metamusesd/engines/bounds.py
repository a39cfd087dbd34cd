"""Stage 8 · worker · bounds on grammars, checked in linear time before any parser sees one."""

from __future__ import annotations

import re

from metamusesd.errors import InvalidGrammar

MAX_GRAMMAR_BYTES = 262_144
MAX_NESTING = 64
MAX_REPEATS = 2000  # what llama.cpp accepts itself; it takes a larger upper bound for none
MAX_RULES = 2000

# DANGER: this runs with the GIL held. No closer is required anywhere, so that no opener is ever given up and tried
# again: with required ones 65 000 brackets kept the worker's streams waiting for half a minute.
_TOKENS = re.compile(
    r'"[^"\\]*(?:\\.[^"\\]*)*"?|\[[^\]\\]*(?:\\.[^\]\\]*)*\]?|#[^\n]*|\{(?:[\s\d,]+|#[^\n]*)*|::=|[()]', re.DOTALL
)


def check_bounds(grammar: str) -> None:
    """Refuse a grammar that is too long, too deep, or has too many repetitions or rules."""
    size = len(grammar.encode("utf-8", "surrogatepass"))
    if any("\ud800" <= letter <= "\udfff" for letter in grammar):
        raise InvalidGrammar("the grammar contains a lone surrogate", remedy="remove it")
    if size > MAX_GRAMMAR_BYTES:
        raise _too_much(f"the grammar has {size} bytes; at most {MAX_GRAMMAR_BYTES} are accepted")
    depth = deepest = rules = 0
    for found in _TOKENS.finditer(grammar):
        word = found.group()
        depth += (word == "(") - (word == ")")
        deepest = max(deepest, depth)
        rules += word == "::="
        if word[0] == "{":
            _check_repeats(word)
    if deepest > MAX_NESTING:
        raise _too_much(f"the grammar nests {deepest} deep; at most {MAX_NESTING} are accepted")
    if rules > MAX_RULES:
        raise _too_much(f"the grammar has {rules} rules; at most {MAX_RULES} are accepted")


def _check_repeats(word: str) -> None:
    counts = [int(digits[:9]) for digits in re.findall(r"\d+", word)]
    if max(counts, default=0) > MAX_REPEATS:
        raise _too_much(f"the grammar repeats {max(counts)} times; at most {MAX_REPEATS} repetitions are accepted")


def _too_much(problem: str) -> InvalidGrammar:
    return InvalidGrammar(problem, remedy="make the grammar smaller, or repeat without an upper bound: * or +")
