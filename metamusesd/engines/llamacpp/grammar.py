"""Stage 8 · worker · JSON schemas and GBNF grammars, which reach C only after they have been proven harmless.

llama.cpp's grammar parser recurses with the nesting, expands repetitions, and ends the process on some inputs. So
there are bounds first (bounds.py); then the schema is read and the grammar compiled and tried in a forked, disposable
process with limits on time and memory; only then here. Each outcome is remembered by digest, the last used longest.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import select
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from metamusesd.engines.bounds import check_bounds
from metamusesd.engines.schema import check_schema
from metamusesd.errors import EngineFailed, InvalidGrammar

TRIAL_LIMIT_S = 2.0  # of processor time
PATIENCE = 5  # times as long on the clock, for a busy host must not refuse what an idle one accepts
TRIAL_MEMORY_BYTES = 512 * 1024 * 1024  # on top of what the process has mapped
REMEMBERED = 64


class GrammarShelf:
    """Compiled grammars by digest. Thread-safe.

    `convert` turns schema text into GBNF; `exercise` compiles and uses a grammar, and raises InvalidGrammar for one of
    no use: both run in the disposable process only. `compile_` parses in this process; None: broken.
    """

    def __init__(
        self, convert: Callable[[str], str], exercise: Callable[[str], None], compile_: Callable[[str], Any]
    ) -> None:
        self._convert, self._exercise, self._compile = convert, exercise, compile_
        self._known: OrderedDict[str, Any] = OrderedDict()  # digest → compiled grammar or the refusal
        self._lock = threading.Lock()

    def of_schema(self, schema: dict[str, Any]) -> Any:
        """The compiled grammar for a JSON schema. Raises InvalidGrammar."""
        text = check_schema(schema)
        return self._remembered("params.json_schema", text, self._convert)

    def of_gbnf(self, grammar: str) -> Any:
        """The compiled grammar. Raises InvalidGrammar."""
        check_bounds(grammar)
        return self._remembered("params.grammar", grammar, str)

    def _remembered(self, field: str, text: str, convert: Callable[[str], str]) -> Any:
        digest = hashlib.sha256(f"{field}:{text}".encode()).hexdigest()
        with self._lock:
            known = self._known.get(digest)
            if known is not None:
                self._known.move_to_end(digest)
        if known is None:
            known = self._proven(text, convert)
            with self._lock:
                self._known[digest] = known
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        if isinstance(known, InvalidGrammar):
            raise InvalidGrammar(known.message, field=field, remedy=known.remedy)
        return known

    def _proven(self, text: str, convert: Callable[[str], str]) -> Any:
        try:
            grammar = run_in_child(lambda: self._trial(text, convert))
            check_bounds(grammar)
        except InvalidGrammar as refusal:
            return refusal
        compiled = self._compile(grammar)
        return compiled if compiled is not None else InvalidGrammar("the grammar cannot be parsed")

    def _trial(self, text: str, convert: Callable[[str], str]) -> str:
        """In the disposable process: the grammar's text, if it compiles and can be used."""
        grammar = convert(text)
        check_bounds(grammar)
        self._exercise(grammar)
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
    if verdict[:1] == b"n":
        problem, remedy = json.loads(verdict[1:])
        raise InvalidGrammar(problem, remedy=remedy)
    raise InvalidGrammar(f"compiling it crashed, or took over {TRIAL_LIMIT_S:g} s or too much memory")


def _be_the_child(attempt: Callable[[], str], writer: int) -> None:
    try:
        _limit_the_child(writer)
        try:
            verdict = b"y" + attempt().encode()
        except BaseException as error:
            verdict = b"n" + json.dumps(_reason(error)).encode()
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(verdict + b"\0")
    finally:
        os._exit(0)


def _reason(error: BaseException) -> tuple[str, str]:
    """What was wrong and what to do, in our words: an exception's own are about our code."""
    if isinstance(error, InvalidGrammar):
        return error.message[:600], error.remedy[:300]
    if isinstance(error, MemoryError | RecursionError):
        return "compiling it takes too much memory or nests too deep", InvalidGrammar.remedy
    return "it cannot be compiled", InvalidGrammar.remedy


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
