"""Stage 8 · worker · the engine without a model: it says the query's words again, and misbehaves when asked to.

For tests, and for measuring everything around an engine. Deterministic. A query may carry directives, words with a `!`;
`options` of the EngineSpec give the same names as defaults for every query (`options = {delay = "5ms"}`):

    !delay=5ms     every step of this sequence takes so long     !crash[=stepN]   abort in its Nth step (1)
    !slower=5ms    its first step takes so long, every further   !segv[=stepN]    a real segmentation fault
                   one twice as long as the one before           !kill[=stepN]    SIGKILL itself: as if from outside
    !prefill=80ms  so long before the first word                 !exit=CODE       os._exit(CODE) in the first step
    !tokens=20     so many words, again from the first           !leak=10MB       keep so much more memory
    !hang[=stepN]  block for ever with the interpreter held      !prepare-crash   abort while preparing
    !stall[=stepN] block for ever with the interpreter free      !prepare=80ms    prepare takes so long
    !spin[=stepN]  compute for ever                              !refuse          end with InvalidRequest in prepare
    !fail[=stepN]  end with a retryable EngineFailed
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from metamusesd.engines.base import (
    EngineSpec,
    EngineStatistics,
    Event,
    Interrupted,
    ModelInfo,
    Prepared,
    Task,
    Urgent,
    never,
    nobody,
)
from metamusesd.errors import ContextOverflow, EngineFailed, InvalidRequest, NoCapacity
from metamusesd.job import InferenceRequest, Priority
from metamusesd.wire import Finished, Token

_UNITS = {"": 1.0, "ms": 1e6, "s": 1e9, "us": 1e3, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9}
_AMOUNT = re.compile(r"([0-9.]+)([A-Za-z]*)")
_STEPPED = ("crash", "segv", "kill", "hang", "stall", "spin", "fail")
_KNOWN = (*_STEPPED, "exit", "delay", "slower", "prefill", "prepare", "tokens", "leak", "refuse", "prepare-crash")
_PREFILL_CHUNK_NS = 5_000_000


@dataclass(frozen=True, slots=True)
class EchoTask(Prepared):
    """What the sequence will say, and how it will misbehave (directive → nanoseconds, bytes, a step or a count)."""

    words: tuple[str, ...] = ()
    programme: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Sequence:
    work: EchoTask
    order: int
    prefill_ns: int
    steps: int = 0
    said: int = 0
    started_ns: int = 0
    first_ns: int = 0


class EchoEngine:
    """See engines.base.Engine. Runs `slots` sequences, highest classes first, holds `reserve_slots` more."""

    def __init__(self, spec: EngineSpec) -> None:
        self.info = ModelInfo(
            name=spec.model_name or "echo", digest=spec.model_digest or "echo:1", architecture="echo",
            context=spec.context, slots=spec.slots, reserve_slots=spec.reserve_slots, template_digest="echo",
            vocabulary=0, prefix_reuse=False,
        )  # fmt: skip
        self._defaults = _parse([f"!{name}={value}" for name, value in spec.options.items()])
        self._default_max_tokens = spec.default_max_tokens
        self._held: dict[int, _Sequence] = {}
        self._running: list[_Sequence] | None = None  # None: to be chosen anew
        self._leaked: list[bytearray] = []
        self._admitted = self._generated = self._prompted = self._step_ns = 0
        self._decode_rate = 0.0

    def prepare(self, task: Task) -> EchoTask:
        """See Engine."""
        words, programme = _read(_query(task.request), self._defaults)
        if programme:
            _misbehave_early(programme)
        prompt_tokens = sum(text.count(" ") + 1 for text in _texts(task.request))
        if prompt_tokens >= self.info.context:
            raise ContextOverflow(prompt_tokens=prompt_tokens, context=self.info.context)
        asked = task.request.params.max_tokens or self._default_max_tokens
        most = min(asked, self.info.context - prompt_tokens)
        return EchoTask(task, prompt_tokens, most, words, programme)

    def admit(self, prepared: Prepared) -> None:
        """See Engine. A task of class c gets in while fewer than `slots` held ones are of class c or higher."""
        assert isinstance(prepared, EchoTask)
        priority, held = prepared.task.priority, self._held
        if len(held) >= self.info.slots:
            rivals = sum(other.work.task.priority >= priority or other.work.task.aged for other in held.values())
            if rivals >= self.info.slots or len(held) >= self.info.slots + self.info.reserve_slots:
                raise NoCapacity(f"{len(held)} sequences are held")
        self._admitted += 1
        self._prompted += prepared.prompt_tokens
        prefill_ns = int(prepared.programme.get("prefill", 0)) if prepared.programme else 0
        held[prepared.task.handle] = _Sequence(prepared, self._admitted, prefill_ns, started_ns=time.monotonic_ns())
        self._running = None

    def cancel(self, handle: int) -> bool:
        """See Engine."""
        self._running = None
        return self._held.pop(handle, None) is not None

    def promote(self, handle: int, priority: Priority) -> None:
        """See Engine."""
        if (sequence := self._held.get(handle)) is not None:
            sequence.work = sequence.work.promoted(priority)
            self._running = None

    def busy(self) -> bool:
        """See Engine."""
        return bool(self._held)

    def step(self, interrupted: Interrupted = never, urgent: Urgent = nobody) -> list[Event]:
        """See Engine. Its steps are short: nobody is asked."""
        started_ns = time.monotonic_ns()
        events: list[Event] = []
        running = self._choose()
        _pause(running)
        generated = self._generated
        for sequence in running:
            self._advance(sequence, events)
        self._step_ns = time.monotonic_ns() - started_ns
        rate = (self._generated - generated) * 1e9 / max(1, self._step_ns)
        self._decode_rate += 0.1 * (rate - self._decode_rate)
        return events

    def statistics(self) -> EngineStatistics:
        """See Engine."""
        held = self._held
        waiting = sum(sequence.work.prompt_tokens for sequence in held.values() if not sequence.said)
        return EngineStatistics(
            slots_used=len(held), preempted=max(0, len(held) - self.info.slots), queued_prompt_tokens=waiting,
            prefill_rate=1e6, decode_rate=self._decode_rate, step_ns=self._step_ns, prompt_tokens=self._prompted,
            generated_tokens=self._generated,
        )  # fmt: skip

    def close(self) -> None:
        """See Engine."""
        self._held.clear()
        self._running = None

    def _choose(self) -> list[_Sequence]:
        if self._running is None:
            self._running = sorted(self._held.values(), key=_rank)[: self.info.slots]
        return self._running

    def _advance(self, sequence: _Sequence, events: list[Event]) -> None:
        """One step of one sequence: a bit of its prefill, or its next word, or its end."""
        work, handle = sequence.work, sequence.work.task.handle
        sequence.steps += 1
        if work.programme and _misbehave(work.programme, sequence.steps, self._leaked):
            self._end(sequence, events, Finished(handle, error=EngineFailed("!fail").to_dict()))
            return
        if sequence.prefill_ns > 0:
            sequence.prefill_ns -= _PREFILL_CHUNK_NS
            return
        words, said = work.words, sequence.said
        if words:
            word = words[said % len(words)]
            events.append(Token(handle, f" {word}" if said else word, 1, not said))
            sequence.said = said = said + 1
            self._generated += 1
            if said == 1:
                sequence.first_ns = time.monotonic_ns()
        done = said >= len(words) and not (words and work.task.request.params.ignore_eos)
        if done or said >= work.max_tokens:
            reason = "stop" if done else "length"
            self._end(sequence, events, Finished(handle, reason))

    def _end(self, sequence: _Sequence, events: list[Event], finished: Finished) -> None:
        now_ns = time.monotonic_ns()
        first_ns = sequence.first_ns or now_ns
        finished.prompt_tokens, finished.completion_tokens = sequence.work.prompt_tokens, sequence.said
        finished.prefill_ms = (first_ns - sequence.started_ns) / 1e6
        finished.decode_ms = (now_ns - first_ns) / 1e6
        events.append(finished)
        del self._held[sequence.work.task.handle]
        self._running = None


def _rank(held: _Sequence) -> tuple[bool, int, int]:
    """Aged ones first, then the highest class, FIFO."""
    task = held.work.task
    return not task.aged, -task.priority, held.order


def _query(request: InferenceRequest) -> str:
    if request.messages is not None:
        return next((message.content for message in reversed(request.messages) if message.role == "user"), "")
    return request.user_query or ""


def _texts(request: InferenceRequest) -> list[str]:
    """All texts that would be part of a prompt."""
    if request.messages is not None:
        return [message.content for message in request.messages]
    texts = [message.content for message in request.context]
    return [*texts, request.user_query or "", *([request.persona] if request.persona else ())]


def _read(query: str, defaults: dict[str, float]) -> tuple[tuple[str, ...], dict[str, float]]:
    """(words to say, programme)."""
    words = query.split()
    programme = defaults
    if "!" in query:
        directives = [word for word in words if word.startswith("!") and _name(word) in _KNOWN]
        if directives:
            programme = {**defaults, **_parse(directives)}
            words = [word for word in words if word not in directives]
    if wanted := int(programme.get("tokens", 0)):
        said = words or ["word"]
        words = list(islice((said[place % len(said)] for place in range(wanted)), wanted))
    return tuple(words), programme


def _name(word: str) -> str:
    return word[1:].split("=")[0]


def _parse(directives: list[str]) -> dict[str, float]:
    """Amounts in nanoseconds, bytes or plain numbers. Raises InvalidRequest."""
    programme = {}
    for word in directives:
        name, _, text = word[1:].partition("=")
        match = _AMOUNT.fullmatch(text.removeprefix("step"))
        if text and match is None:
            raise InvalidRequest("user_query", f"{word!r} is no directive of the echo engine", "see engines/echo.py")
        programme[name] = float(match[1]) * _UNITS.get(match[2], 1.0) if match else 1.0
    return programme


def _pause(running: list[_Sequence]) -> None:
    """A step takes as long as its slowest sequence asks."""
    pause_ns = 0.0
    for sequence in running:
        if sequence.work.programme:
            programme = sequence.work.programme
            slower_ns = programme.get("slower", 0.0) * 2 ** min(sequence.steps, 30)
            pause_ns = max(pause_ns, programme.get("delay", 0.0), slower_ns)
        if sequence.prefill_ns > 0:
            pause_ns = max(pause_ns, min(sequence.prefill_ns, _PREFILL_CHUNK_NS))
    if pause_ns:
        time.sleep(pause_ns / 1e9)


def _misbehave_early(programme: dict[str, float]) -> None:
    """In prepare, on its own thread."""
    if "prepare-crash" in programme:
        os.abort()
    if "refuse" in programme:
        raise InvalidRequest("user_query", "contains !refuse", "leave it out")
    if "prepare" in programme:
        time.sleep(programme["prepare"] / 1e9)


def _misbehave(programme: dict[str, float], step: int, leaked: list[bytearray]) -> bool:
    """In a step. True: the sequence shall end with an EngineFailed."""
    if "exit" in programme:
        os._exit(int(programme["exit"]))
    if "leak" in programme and step == 1:
        leaked.append(bytearray(b"x" * int(programme["leak"])))
    for name, act in _ACTS.items():
        if programme.get(name) == step:
            act()
    return programme.get("fail") == step


def _hang() -> None:
    """Block in C with the interpreter lock held: no thread, no signal handler of Python runs any more.

    DANGER on purpose: a futex wait restarts after every signal, so that only SIGKILL and SIGABRT end it.
    """
    libc = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def _spin() -> None:
    while True:
        pass


_ACTS: dict[str, Callable[[], object]] = {
    "crash": os.abort,
    "segv": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": _hang,
    "stall": lambda: time.sleep(1e9),
    "spin": _spin,
}
