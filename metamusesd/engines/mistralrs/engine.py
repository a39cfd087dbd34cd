"""Stage 8 · worker · many sequences on mistral.rs, whose own threads compute; the step loop collects what they say.

    admit ─► a Stream (its thread sends, then reads) ─► one queue ─► step: what has come, as events
    cancel ─► the sequence is gone for us at once; for mistral.rs when it next has a token for it

A step waits for a token of any sequence. While none comes it asks whether the sequences are still wanted, and goes on
waiting: an engine that hangs makes no step, which the supervisor sees. It returns without a token only while the
process computes, a long prompt for instance, so that new jobs are heard meanwhile.
"""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass
from functools import partial

from metamusesd.engines.asked import check_slots
from metamusesd.engines.base import (
    EngineSpec,
    EngineStatistics,
    Event,
    Finished,
    Interrupted,
    ModelInfo,
    Prepared,
    Progress,
    Task,
    Token,
    Urgent,
    never,
    nobody,
)  # fmt: skip
from metamusesd.engines.mistralrs.native import Model
from metamusesd.engines.mistralrs.prepare import MistralPrepared, Preparer
from metamusesd.engines.mistralrs.source import read_source
from metamusesd.engines.mistralrs.stream import Heard, Said, Stream
from metamusesd.errors import EngineFailed, MetamusesdError, ModelLoadFailed
from metamusesd.job import Priority

LOOK_S = 0.02  # so often a waiting step asks whether it is still wanted
PATIENCE_S = 0.25  # so long it waits at most, if the process computes
COMPUTING = 0.2  # of the time that it waited was spent on a processor
GATHER_S = 0.0005  # tokens of one batch come one after another: let them come
MOST_EVENTS = 1024  # a step
FAILURES = 3  # of mistral.rs itself, without a token between them: it is broken, and only a new process helps
WARM_UP = "One, two, three, four, five, six, seven,"
DRIFT = 0.1


@dataclass(slots=True)
class Sequence:
    """One job inside the engine. Mutated by the step thread only. Times are nanoseconds, 0: not yet."""

    prepared: MistralPrepared
    stream: Stream
    begun_ns: int
    first_ns: int = 0
    generated: int = 0
    prompt_tokens: int = 0
    cached: int = 0

    @property
    def handle(self) -> int:
        return self.prepared.task.handle

    def finished(self, reason: str = "", error: MetamusesdError | None = None) -> Finished:
        """The last event."""
        now_ns = time.perf_counter_ns()
        first_ns = self.first_ns or now_ns
        return Finished(
            self.handle,
            reason,
            error.to_dict() if error is not None else None,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.generated,
            cached_tokens=self.cached,
            prefill_ms=(first_ns - self.begun_ns) / 1e6,
            decode_ms=(now_ns - first_ns) / 1e6,
        )


class MistralEngine:
    """See metamusesd/engines/base.py for the contract."""

    def __init__(self, spec: EngineSpec, progress: Progress = lambda _: None) -> None:
        self._spec = spec
        source = read_source(spec.model_path)
        self._model = Model(spec, source)
        progress(1.0)
        context = min(spec.context, self._model.trained_context)
        self._preparer = Preparer(self._model, source, spec, context)
        self._live: dict[int, Sequence] = {}  # by order of admission
        self._orders: dict[int, int] = {}  # handle → order
        self._ghosts: list[Stream] = []  # cancelled, and perhaps still computed for until their next token
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._order = self._failures = 0
        self._last_ns = self._step_ns = self._hits = self._queries = self._computed = self._generated = 0
        self._prefill_rate = self._decode_rate = 0.0
        self.info = ModelInfo(
            name=spec.model_name, digest=spec.model_digest, architecture=source.architecture, context=context,
            slots=spec.slots, reserve_slots=spec.reserve_slots, template_digest=self._preparer.template.digest,
            vocabulary=source.vocabulary, prefix_reuse=True,
        )  # fmt: skip
        self._warm_up()

    def _warm_up(self) -> None:
        """The first answer is slow, and shows whether this model can be run at all. It gives the first rates."""
        sampling = {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True}
        try:
            times = [(time.perf_counter(), said) for said in self._model.run(WARM_UP, sampling)]
        except BaseException as error:  # a panic of Rust is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            problem = f"{self._spec.model_path}: it loads, and cannot answer: {str(error)[:600]}"
            raise ModelLoadFailed(problem) from error
        if times[1:]:
            self._decode_rate = (len(times) - 1) / max(1e-6, times[-1][0] - times[0][0])
        if times and (usage := times[-1][1].usage) is not None:
            self._prefill_rate = usage.prompt_rate

    def prepare(self, task: Task) -> Prepared:
        return self._preparer.prepare(task)

    def admit(self, prepared: Prepared) -> None:
        """A higher class gets in over full slots, and runs beside the others."""
        assert isinstance(prepared, MistralPrepared)
        rank = prepared.task.priority
        peers = sum(other.prepared.task.priority >= rank or other.prepared.task.aged for other in self._live.values())
        check_slots(self._spec, peers, len(self._live))
        now_ns = time.perf_counter_ns()
        if not self._live:
            self._last_ns = now_ns
        self._order += 1
        opened = partial(self._model.run, prepared.prompt, prepared.sampling)
        stream = Stream(self._order, opened, self._heard)
        self._live[self._order] = Sequence(prepared, stream, now_ns, prompt_tokens=prepared.prompt_tokens)
        self._orders[prepared.task.handle] = self._order
        self._queries += 1

    def cancel(self, handle: int) -> bool:
        order = self._orders.get(handle)
        if order is None:
            return False
        self._ghosts.append(self._live[order].stream)
        self._leave(order)
        return True

    def promote(self, handle: int, priority: Priority) -> None:
        """It counts for who gets in; mistral.rs itself knows no classes."""
        if (order := self._orders.get(handle)) is not None:
            sequence = self._live[order]
            sequence.prepared = sequence.prepared.promoted(priority)

    def busy(self) -> bool:
        """Also while mistral.rs computes for nobody any more: whoever tokenizes then has to wait for it."""
        if self._ghosts:
            self._ghosts = [stream for stream in self._ghosts if stream.alive]
        return bool(self._live or self._ghosts)

    def step(self, interrupted: Interrupted = never, urgent: Urgent = nobody) -> list[Event]:
        """See Engine. It runs all its sequences at once: nobody has to give way."""
        events: list[Event] = []
        generated = self._generated
        for order, said in self._wait(interrupted):
            sequence = self._live.get(order)
            if sequence is None:
                continue
            if isinstance(said, Said):
                self._failures = 0
                self._take(order, sequence, said, events)
            else:
                self._fail(order, sequence, said, events)
        self._learn(self._generated - generated)
        return events

    def _wait(self, interrupted: Interrupted) -> list[Heard]:
        """What has come, once something has. Empty: nobody wants some sequence any more, or the process computes."""
        until_s, computed_s = time.monotonic() + PATIENCE_S, time.process_time()
        while self._live:
            try:
                return [self._heard.get(timeout=LOOK_S), *self._more()]
            except queue.Empty:
                pass
            if any(interrupted(sequence.handle) for sequence in self._live.values()):
                break
            if time.monotonic() > until_s and time.process_time() - computed_s > COMPUTING * PATIENCE_S:
                break
        if not self._live:
            time.sleep(LOOK_S)
        return []

    def _more(self) -> list[Heard]:
        found: list[Heard] = []
        if len(self._live) > 1:
            time.sleep(GATHER_S)
        while len(found) < MOST_EVENTS and not self._heard.empty():
            found.append(self._heard.get())
        return found

    def _take(self, order: int, sequence: Sequence, said: Said, events: list[Event]) -> None:
        """Its next token, or its end."""
        count = self._tokens(sequence, said)
        first = not sequence.first_ns
        sequence.first_ns = sequence.first_ns or time.perf_counter_ns()
        sequence.generated += count
        self._generated += count
        if said.text or count:
            events.append(Token(sequence.handle, said.text, count, first, said.logprobs))
        if said.reason:
            events.append(sequence.finished(said.reason))
            self._leave(order)

    def _tokens(self, sequence: Sequence, said: Said) -> int:
        """How many tokens this is: one, and with the last word those that mistral.rs hid, less one that ends it."""
        if (usage := said.usage) is None:
            return 1
        sequence.prompt_tokens, sequence.cached = usage.prompt, usage.cached
        self._hits += usage.cached > 0
        self._computed += usage.prompt - usage.cached
        self._prefill_rate += DRIFT * (usage.prompt_rate - self._prefill_rate)
        return max(0, usage.completion - said.ended - sequence.generated)

    def _fail(self, order: int, sequence: Sequence, error: MetamusesdError, events: list[Event]) -> None:
        """This sequence ends. Too many failures of mistral.rs itself end the worker: the supervisor brings another."""
        events.append(sequence.finished(error=error))
        self._leave(order)
        if isinstance(error, EngineFailed):
            self._failures += 1
            if self._failures >= FAILURES:
                raise RuntimeError(f"mistral.rs failed {self._failures} times in a row: {error.message}")

    def _leave(self, order: int) -> None:
        sequence = self._live.pop(order)
        del self._orders[sequence.handle]
        sequence.stream.drop()

    def _learn(self, tokens: int) -> None:
        if not tokens:
            return
        now_ns = time.perf_counter_ns()
        self._step_ns, self._last_ns = max(1, now_ns - self._last_ns), now_ns
        self._decode_rate += DRIFT * (tokens * 1e9 / self._step_ns - self._decode_rate)

    def statistics(self) -> EngineStatistics:
        waiting = sum(each.prompt_tokens for each in self._live.values() if not each.first_ns)
        return EngineStatistics(
            slots_used=len(self._live), queued_prompt_tokens=waiting, prefill_rate=self._prefill_rate,
            decode_rate=self._decode_rate, step_ns=self._step_ns, prefix_hits=self._hits, prefix_queries=self._queries,
            prompt_tokens=self._computed, generated_tokens=self._generated,
        )  # fmt: skip

    def close(self) -> None:
        for order in list(self._live):
            self._leave(order)
        self._model.close()
