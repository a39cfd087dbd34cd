"""Stage 8 · worker · JSON schemas and GBNF grammars, which reach C only after they have been proven harmless.

llama.cpp's grammar parser recurses with the nesting, expands repetitions, and ends the process on some inputs. So
there are bounds on bytes, nesting, repetitions and rules first; then the grammar is compiled and tried in a forked,
disposable process with limits on time and memory; only then here. Each outcome is remembered by digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import select
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from metamusesd.errors import EngineFailed, InvalidGrammar

MAX_SCHEMA_BYTES = 65_536
MAX_GRAMMAR_BYTES = 262_144
MAX_SCHEMA_DEPTH = 32
MAX_NESTING = 64
MAX_REPEATS = 2000
MAX_RULES = 2000
SCHEMA_NESTING = MAX_REPEATS + MAX_NESTING  # the converter writes maxLength as nested options
TRIAL_LIMIT_S = 2.0  # of processor time
PATIENCE = 5  # times as long on the clock, for a busy host must not refuse what an idle one accepts
TRIAL_MEMORY_BYTES = 512 * 1024 * 1024  # on top of what the process has mapped
REMEMBERED = 64

_TOKENS = re.compile(r'"(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\\n])*\]|#[^\n]*|\{[^{}\n]*\}|::=|[()]')


def check_bounds(grammar: str, nesting: int = MAX_NESTING) -> None:
    """Refuse a grammar that is too long, too deep, or has too many repetitions or rules."""
    size = len(grammar.encode("utf-8", "surrogatepass"))
    if any("\ud800" <= letter <= "\udfff" for letter in grammar):
        raise InvalidGrammar("the grammar contains a lone surrogate")
    if size > MAX_GRAMMAR_BYTES:
        raise InvalidGrammar(f"the grammar has {size} bytes; at most {MAX_GRAMMAR_BYTES} are accepted")
    depth = deepest = rules = 0
    for found in _TOKENS.finditer(grammar):
        word = found.group()
        depth += (word == "(") - (word == ")")
        deepest = max(deepest, depth)
        rules += word == "::="
        if word[0] == "{":
            _check_repeats(word)
    if deepest > nesting:
        raise InvalidGrammar(f"the grammar nests {deepest} deep; at most {nesting} are accepted")
    if rules > MAX_RULES:
        raise InvalidGrammar(f"the grammar has {rules} rules; at most {MAX_RULES} are accepted")


def _check_repeats(word: str) -> None:
    counts = [int(digits[:9]) for digits in re.findall(r"\d+", word)]
    if max(counts, default=0) > MAX_REPEATS:
        raise InvalidGrammar(f"the grammar repeats {word}; at most {MAX_REPEATS} repetitions are accepted")


def check_schema(schema: dict[str, Any]) -> str:
    """The schema as JSON text, or InvalidGrammar when it is too long, too deep or refers to other documents."""
    try:
        text = json.dumps(schema, allow_nan=False)
    except (ValueError, RecursionError, TypeError) as error:
        raise InvalidGrammar(f"the JSON schema is not plain JSON: {error}") from error
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidGrammar(f"the JSON schema has {len(text)} bytes; at most {MAX_SCHEMA_BYTES} are accepted")
    _check_node(schema, 1)
    return text


def _check_node(node: Any, depth: int) -> None:
    if depth > MAX_SCHEMA_DEPTH:
        raise InvalidGrammar(f"the JSON schema nests deeper than {MAX_SCHEMA_DEPTH}")
    if isinstance(node, dict):
        reference = node.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise InvalidGrammar(
                f"the JSON schema refers to {reference[:80]!r}; only references inside it are followed"
            )
        for name in ("minItems", "maxItems", "minLength", "maxLength"):
            if isinstance(node.get(name), int) and node[name] > MAX_REPEATS:
                raise InvalidGrammar(f"the JSON schema asks for {name} {node[name]}; at most {MAX_REPEATS} is accepted")
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            _check_node(child, depth + 1)


class GrammarShelf:
    """Compiled grammars by digest. Thread-safe.

    `convert` turns schema text into GBNF; `exercise` compiles and uses a grammar: both run in the disposable process
    only. `compile_` parses in this process and answers None for a broken grammar.
    """

    def __init__(
        self, convert: Callable[[str], str], exercise: Callable[[str], bool], compile_: Callable[[str], Any]
    ) -> None:
        self._convert, self._exercise, self._compile = convert, exercise, compile_
        self._known: OrderedDict[str, Any] = OrderedDict()  # digest → compiled grammar or the refusal
        self._lock = threading.Lock()

    def of_schema(self, schema: dict[str, Any]) -> Any:
        """The compiled grammar for a JSON schema. Raises InvalidGrammar."""
        text = check_schema(schema)
        return self._remembered("schema:" + text, lambda: self._convert(text))

    def of_gbnf(self, grammar: str) -> Any:
        """The compiled grammar. Raises InvalidGrammar."""
        check_bounds(grammar)
        return self._remembered("gbnf:" + grammar, lambda: grammar)

    def _remembered(self, key: str, text: Callable[[], str]) -> Any:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        with self._lock:
            known = self._known.get(digest)
        if known is None:
            known = self._proven(text)
            with self._lock:
                self._known[digest] = known
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        if isinstance(known, InvalidGrammar):
            raise InvalidGrammar(known.message)
        return known

    def _proven(self, text: Callable[[], str]) -> Any:
        try:
            grammar = run_in_child(lambda: self._trial(text))
            check_bounds(grammar, SCHEMA_NESTING)
        except InvalidGrammar as refusal:
            return refusal
        compiled = self._compile(grammar)
        return compiled if compiled is not None else InvalidGrammar("the grammar cannot be parsed")

    def _trial(self, text: Callable[[], str]) -> str:
        """In the disposable process: the grammar's text, if it compiles and can be used."""
        grammar = text()
        check_bounds(grammar, SCHEMA_NESTING)
        if not self._exercise(grammar):
            raise InvalidGrammar("the grammar cannot be parsed, refers to a missing rule, or recurses to the left")
        return grammar


def run_in_child(attempt: Callable[[], str]) -> str:
    """What `attempt` returns in a forked process with limits. InvalidGrammar if it raises, dies or takes too long.

    The child of a process with other threads may only compute: it closes every inherited descriptor first, so that a
    pipe that the parent drops is not held open, and leaves by os._exit whatever happens.
    """
    reader, writer = os.pipe()
    try:
        child = os.fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        raise EngineFailed(f"no process to try the grammar in: {error}") from error
    if child == 0:
        _be_the_child(attempt, writer)
    os.close(writer)
    try:
        verdict = _read_until(reader, time.monotonic() + TRIAL_LIMIT_S * PATIENCE)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if verdict[:1] == b"y":
        return verdict[1:].decode()
    reason = verdict[1:].decode() or f"compiling it crashed, or took over {TRIAL_LIMIT_S:g} s or too much memory"
    raise InvalidGrammar(f"the grammar is not accepted: {reason}")


def _be_the_child(attempt: Callable[[], str], writer: int) -> None:
    try:
        _limit_the_child(writer)
        try:
            verdict = b"y" + attempt().encode()
        except BaseException as error:
            verdict = b"n" + (str(error) or type(error).__name__).encode("utf-8", "replace")[:300]
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(verdict + b"\0")
    finally:
        os._exit(0)


def _limit_the_child(writer: int) -> None:
    os.closerange(3, writer)
    os.closerange(writer + 1, 65_536)
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    limit = mapped + TRIAL_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = max(1, int(TRIAL_LIMIT_S))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def _read_until(reader: int, end_s: float) -> bytes:
    """The child's whole verdict, which ends with a NUL; empty if it does not come in time."""
    verdict = b""
    while not verdict.endswith(b"\0"):
        ready, _, _ = select.select([reader], [], [], max(0.0, end_s - time.monotonic()))
        more = os.read(reader, 65_536) if ready else b""
        if not more:
            return b""
        verdict += more
    return verdict[:-1]
