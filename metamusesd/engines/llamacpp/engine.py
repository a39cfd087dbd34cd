"""Stage 8 · worker · continuous batching of many sequences in one llama.cpp context.

    step:  who runs?  ─►  known prefix?  ─►  plan  ─►  room in the KV cache?  ─►  decode  ─►  sample  ─►  events
           batch.py       memory.py         batch.py   memory.py                native.py    sampling.py

Determinism. A draw depends on (seed, position) alone, and greedy decoding on nothing but the logits. The logits
themselves depend a little on what else is there: llama.cpp picks other kernels for other batch sizes, and sums
attention in the order in which the cells lie, so floats round differently (up to 1.1 logits of noise was measured on a
4-bit model). Equal requests give equal tokens when batches have equal shapes and the KV cache an equal layout, for
instance alone after a start; beside others they may part where two tokens are nearly equally likely. With the option
`deterministic` shapes and layout are always equal: each sequence has cells of its own, which no other is computed
with, copied into or evicted for. docs/engines.md says what that costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from metamusesd.engines.asked import check_slots
from metamusesd.engines.base import (
    EngineSpec,
    EngineStatistics,
    Event,
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
from metamusesd.engines.llamacpp import batch, pages
from metamusesd.engines.llamacpp.calibrate import calibrate
from metamusesd.engines.llamacpp.footprint import BATCH_TOKENS, cell_count, wants_exact
from metamusesd.engines.llamacpp.memory import Memory
from metamusesd.engines.llamacpp.native import ABORTED, Context, Model
from metamusesd.engines.llamacpp.prefixes import Prefixes
from metamusesd.engines.llamacpp.prepare import LlamaPrepared, Preparer, dead_end
from metamusesd.engines.llamacpp.rates import Rates
from metamusesd.engines.llamacpp.sequence import Entry, Sequence, in_order, new_sequence
from metamusesd.engines.llamacpp.spelling import Spelling
from metamusesd.errors import EngineFailed, ModelLoadFailed, NoCapacity
from metamusesd.job import Priority

BrokenOff = Callable[[Sequence], bool]
EXACT_CHUNK = 32  # prompt tokens of every step in the mode `deterministic`
CACHED_SEQUENCES = 16
IDLE_CELLS = 1280  # cached and unused: 1 024 of them made a decode step 4 % dearer, 2 048 9 %


class LlamaEngine:
    """See metamusesd/engines/base.py for the contract."""

    def __init__(self, spec: EngineSpec, progress: Progress = lambda _: None) -> None:
        self._spec = spec
        if spec.hugepages == "off":
            pages.refuse_huge()
        self._model = Model(spec, progress)
        if not self._model.usable:
            raise ModelLoadFailed(
                f"{spec.model_path}: {self._model.architecture} does not generate text token by token"
            )
        context = min(spec.context, self._model.trained_context)
        exact = wants_exact(spec)
        shares = self._model.shares_prefixes and not exact
        cached = int(spec.options.get("cached_sequences", CACHED_SEQUENCES)) if shares else 0
        sequences = spec.slots + spec.reserve_slots + cached
        limit = max(BATCH_TOKENS, spec.slots)
        cells = cell_count(spec, context, self._model.keeps_tokens)
        self._context = Context(self._model, spec, cells, sequences, limit)
        if spec.hugepages == "thp":
            pages.ask_for_huge()
        self._memory = Memory(self._context, sequences, int(spec.options.get("idle_cells", IDLE_CELLS)), shares)
        self._prefixes = Prefixes(self._memory, shares)
        self._preparer = Preparer(self._model, spec, context)
        self._ends = self._model.end_tokens()
        self._spelling = Spelling(self._model, self._ends, self._preparer.template.source)
        self._live: dict[int, Sequence] = {}  # by order of admission
        self._orders: dict[int, int] = {}  # handle → order
        self._order = 0
        self._credit_s = batch.CREDIT_CAP_S
        self._chunk = EXACT_CHUNK if exact else 0
        self._rates = Rates(single=exact)
        self._mixes = spec.gpu_layers > 0  # there a batch costs one pass over the weights, whatever its length
        self._step_ns = self._computed = self._generated = self._preempted = 0
        self.info = self._describe(context, shares)
        calibrate(self._context, self._rates, spec.slots, self._model.vocabulary, self._mixes)

    def _describe(self, context: int, shares: bool) -> ModelInfo:
        spec, model = self._spec, self._model
        return ModelInfo(
            name=spec.model_name,
            digest=spec.model_digest,
            architecture=model.architecture,
            context=context,
            slots=spec.slots,
            reserve_slots=spec.reserve_slots,
            template_digest=self._preparer.template.digest,
            vocabulary=model.vocabulary,
            prefix_reuse=shares,
        )

    def prepare(self, task: Task) -> Prepared:
        return self._preparer.prepare(task)

    def admit(self, prepared: Prepared) -> None:
        """Takes no cells that its own class or a higher one has reserved; lower classes would have to give way."""
        assert isinstance(prepared, LlamaPrepared)
        rank = int(prepared.task.priority)
        peers = [other for other in self._live.values() if other.rank >= rank or other.immune]
        check_slots(self._spec, len(peers), len(self._live))
        holds = [other.hold for other in self._live.values()]
        shared = self._memory.shared_length(prepared.prompt, holds)
        reserved = prepared.prompt_tokens + prepared.max_tokens - shared
        if reserved + sum(other.reserved for other in peers) > self._memory.cells.total:
            raise NoCapacity("the KV cache has no room", cells=self._memory.cells.total, wanted=reserved)
        self._order += 1
        self._live[self._order] = new_sequence(prepared, self._order, self._memory.new_id(), reserved)
        self._orders[prepared.task.handle] = self._order

    def cancel(self, handle: int) -> bool:
        order = self._orders.get(handle)
        if order is None:
            return False
        self._leave(self._live[order])
        return True

    def promote(self, handle: int, priority: Priority) -> None:
        if (order := self._orders.get(handle)) is not None:
            sequence = self._live[order]
            sequence.prepared = sequence.prepared.promoted(priority)

    def busy(self) -> bool:
        return bool(self._live)

    def step(self, interrupted: Interrupted = never, urgent: Urgent = nobody) -> list[Event]:
        if not self._live:
            return []
        started_ns = time.perf_counter_ns()
        events: list[Event] = []
        chosen = self._plan()
        decodes = in_order([(self._live[key], 1) for key in chosen.decode])
        prompts = [(self._live[key], count) for key, count in chosen.prefill]
        if prompts and self._mixes:
            computed = self._compute(in_order(decodes + prompts), events)
        else:
            for size in self._rates.split(len(decodes)):
                self._compute(decodes[:size], events)
                decodes = decodes[size:]
            prompts = [entry for entry in prompts if entry[0].order in self._live]
            computed = self._compute(prompts, events, partial(self._broken_off, interrupted, urgent))
        self._learn(chosen, started_ns, computed)
        return events

    def _plan(self) -> batch.Plan:
        """Plan until the KV cache has room for the plan: each round evicts one more sequence."""
        self._readmit()
        held: frozenset[int] = frozenset()
        while True:
            views = [sequence.view() for sequence in self._live.values()]
            running = batch.runnable(views, self._spec.slots)
            chosen = batch.plan(running, views, self._budget(running), held)
            prompts = [self._live[key] for key, _ in chosen.prefill]
            if sum(self._prefixes.look_up(each, self._live.values()) for each in prompts):
                continue
            if len(prompts) > 1 and (waiting := self._prefixes.who_waits(prompts)):
                held |= waiting
                continue
            wanted = len(chosen.decode) + sum(count for _, count in chosen.prefill)
            if self._memory.make_room(wanted) or not self._evict():
                return chosen

    def _budget(self, running: list[batch.View]) -> batch.Budget:
        decodes = sum(view.remaining == 1 for view in running)
        first = batch.next_prompt(running)
        past = self._live[first.key].hold.past if first is not None else 0
        return batch.Budget(
            slots=self._spec.slots,
            chunk=self._chunk,
            chunk_limit=self._context.limit,
            decode_s=self._rates.decode_cost_s(decodes),
            chunk_s=self._rates.chunk_s * self._rates.prefill_drift,
            mixes=self._mixes,
            prefill_s=self._rates.token_cost_s(past, large=False),
            large_s=self._rates.token_cost_s(past, large=True),
            prefill_ratio=self._spec.prefill_ratio,
            credit_s=self._credit_s,
            large_cap_s=self._large_cap_s(first, disturbs=len(running) < len(self._live)),
        )

    def _large_cap_s(self, first: batch.View | None, *, disturbs: bool) -> float:
        """A critical prompt gives way to nobody; others only where that costs no more than time."""
        if first is None or disturbs:
            return batch.FIRM_CAP_S
        large = first.rank == Priority.CRITICAL or self._may_yield(self._live[first.key])
        return batch.LARGE_CAP_S if large else batch.FIRM_CAP_S

    def _may_yield(self, sequence: Sequence) -> bool:
        """Whether its prompt may be broken off for a higher class. What lends prefixes can take a chunk back, too."""
        return self.info.prefix_reuse and not sequence.firm

    def _broken_off(self, interrupted: Interrupted, urgent: Urgent, sequence: Sequence) -> bool:
        """Asked in the middle of a chunk of its prompt."""
        gives_way = self._may_yield(sequence)
        return interrupted(sequence.handle) or (gives_way and urgent(sequence.prepared.task.priority))

    def _evict(self) -> bool:
        """Drop the KV of the youngest sequence of the lowest class, to be recomputed later. False: nothing to drop."""
        able = [sequence for sequence in self._live.values() if not sequence.waiting]
        if len(able) < 2:
            return False
        victim = min(able, key=lambda sequence: (sequence.immune, sequence.rank, -sequence.order))
        self._memory.drop(victim.hold)
        victim.waiting, victim.looked_up = True, False
        return True

    def _readmit(self) -> None:
        """Let sequences that lost their KV run again, best class and oldest first, when their whole length fits."""
        waiting = [sequence for sequence in self._live.values() if sequence.waiting]
        if not waiting:
            return
        free = self._memory.cells.total - sum(s.most_cells for s in self._live.values() if not s.waiting)
        waiting.sort(key=lambda sequence: (not sequence.immune, -sequence.rank, sequence.order))
        for sequence in waiting:
            free -= sequence.most_cells
            if free < 0 and len(waiting) < len(self._live):
                return
            sequence.waiting = False

    def _compute(self, entries: list[Entry], events: list[Event], broken_off: BrokenOff | None = None) -> bool:
        """Decode one batch and sample a token for each sequence in it that has no token left to compute. False: nothing
        was computed. A lone chunk of a prompt takes as long as many tokens: it asks whether it is `broken_off`."""
        entries = [(sequence, count) for sequence, count in entries if not sequence.waiting]
        entries = self._decode(entries, events, broken_off)
        if not entries:
            return False
        complete = []
        cells, start = self._memory.cells.take(sum(count for _, count in entries)), 0
        for sequence, count in entries:
            sequence.hold.grow(cells[start : start + count])
            start += count
            if not sequence.hold.remaining:
                complete.append(sequence)
        if complete:
            now_ns = time.perf_counter_ns()
            for row, sequence in zip(self._context.logits(), complete, strict=False):
                self._sample(sequence, row, events, now_ns)
        return True

    def _decode(self, entries: list[Entry], events: list[Event], broken_off: BrokenOff | None) -> list[Entry]:
        """Have llama.cpp compute the entries; those that it did come back. Without cells: evict, and try again."""
        while entries:
            asked = partial(broken_off, entries[0][0]) if broken_off else None
            status = self._context.decode(self._fill(entries), asked)
            if status == 0:
                return entries
            if status == ABORTED and asked:
                self._memory.recover(each.hold for each, _ in entries)
                return []
            if status == 1 and (self._memory.forget_cached() or self._evict()):
                entries = [(sequence, count) for sequence, count in entries if not sequence.waiting]
                continue
            self._fail(entries, status, events)
            return []
        return []

    def _fill(self, entries: list[Entry]) -> int:
        """Write the entries into the batch; its length comes back."""
        context = self._context
        start = 0
        for sequence, count in entries:
            hold, end = sequence.hold, start + count
            past = hold.past
            context.tokens[start:end] = hold.tokens[past : past + count]
            context.positions[start:end] = np.arange(past, past + count, dtype=np.int32) if count > 1 else past
            context.sequences[start:end] = hold.seq_id
            context.wanted[start:end] = 0
            context.wanted[end - 1] = count == hold.remaining
            start = end
        return start

    def _fail(self, entries: list[Entry], status: int, events: list[Event]) -> None:
        """A decode failed: its sequences end with an error, and so does whoever's KV went with it."""
        lost = {sequence.order: sequence for sequence, _ in entries}
        for sequence in self._live.values():
            if not self._memory.resynchronize(sequence.hold):
                lost[sequence.order] = sequence
        error = EngineFailed(f"llama_decode failed with {status}", status=status).to_dict()
        for sequence in lost.values():
            events.append(sequence.finished(time.perf_counter_ns(), error=error))
            self._leave(sequence, keep=False)

    def _sample(self, sequence: Sequence, row: Any, events: list[Event], now_ns: int) -> None:
        sampler = sequence.sampler
        if sampler.plain:
            token, logprobs = int(row.argmax()), None
        else:
            raw = row.copy() if sampler.choice.logprobs is not None else row
            token = sampler.pick(row, sequence.hold.known)
            logprobs = self._spelling.logprobs(raw, token, sampler.choice.logprobs)
        if token < 0:
            events.append(sequence.finished(now_ns, error=dead_end(sequence.prepared).to_dict()))
            self._leave(sequence)
        elif token in self._ends and (
            sampler.grammar is not None or not sequence.prepared.task.request.params.ignore_eos
        ):
            self._end(sequence, "stop", Token(sequence.handle, sequence.text.finish(), 0), events, now_ns)
        else:
            self._take(sequence, token, logprobs, events, now_ns)

    def _take(
        self, sequence: Sequence, token: int, logprobs: list[Any] | None, events: list[Event], now_ns: int
    ) -> None:
        """`token` is the next of `sequence`: note it, show what text there is, and end where it is the last."""
        sequence.hold.add_token(token)
        sequence.sampler.accept(token)
        sequence.generated += 1
        self._generated += 1
        first = not sequence.first_ns
        sequence.first_ns = sequence.first_ns or now_ns
        event = Token(sequence.handle, sequence.text.feed(self._spelling.piece(token)), 1, first, logprobs)
        if sequence.text.stopped:
            self._end(sequence, "stop", event, events, now_ns)
        elif sequence.generated >= sequence.prepared.max_tokens:
            event.text += sequence.text.finish()
            self._end(sequence, "length", event, events, now_ns)
        else:
            events.append(event)

    def _end(self, sequence: Sequence, reason: str, last: Token, events: list[Event], now_ns: int) -> None:
        if last.text or last.tokens:
            events.append(last)
        events.append(sequence.finished(now_ns, reason))
        self._leave(sequence)

    def _leave(self, sequence: Sequence, keep: bool = True) -> None:
        """The sequence is over. Its KV stays for others to begin with, unless `keep` is false."""
        del self._live[sequence.order]
        del self._orders[sequence.handle]
        if keep:
            self._memory.keep(sequence.hold, [other.hold for other in self._live.values()])
        else:
            self._memory.forget(sequence.hold)

    def _learn(self, chosen: batch.Plan, started_ns: int, computed: bool) -> None:
        """Rates, credit, and how long those that yielded have done so."""
        self._step_ns = time.perf_counter_ns() - started_ns
        took_s = self._step_ns / 1e9
        if not computed:
            chosen = replace(chosen, spent_s=min(chosen.spent_s, took_s))
        for key, _ in chosen.prefill:
            if key in self._live:
                self._live[key].broken_s = 0.0 if computed else self._live[key].broken_s + took_s
        if chosen.prefill and computed:
            count = sum(count for _, count in chosen.prefill)
            past = sum(count * self._past(key, count) for key, count in chosen.prefill) // count
            self._computed += count
            self._rates.saw_prefill(count, past, len(chosen.decode), took_s, self._mixes)
        if not chosen.prefill and chosen.decode:
            self._rates.saw_decode(len(chosen.decode), took_s)
        self._credit_s = batch.earned_s(self._credit_s, chosen, took_s, self._spec.prefill_ratio)
        self._preempted = len(chosen.yielding)
        for key in chosen.yielding:
            if key in self._live:
                self._live[key].stood_aside(took_s, self._spec.yield_limit_s)

    def _past(self, key: int, count: int) -> int:
        """How many tokens the sequence had when it got the middle one of the last `count`; 0: it is gone."""
        return self._live[key].hold.past - count + count // 2 if key in self._live else 0

    def statistics(self) -> EngineStatistics:
        live = self._live.values()
        return EngineStatistics(
            slots_used=len(live),
            preempted=self._preempted if live else 0,
            queued_prompt_tokens=sum(s.hold.remaining for s in live if s.hold.remaining > 1),
            kv_cells=self._memory.cells.total,
            kv_cells_used=self._memory.cells.used,
            prefill_rate=self._rates.prompt_tokens_per_s,
            decode_rate=self._rates.tokens_per_s,
            step_ns=self._step_ns,
            prefix_hits=self._prefixes.hits,
            prefix_queries=self._prefixes.queries,
            prompt_tokens=self._computed,
            generated_tokens=self._generated,
        )

    def close(self) -> None:
        self._live.clear()
        self._orders.clear()
        self._context.close()
        self._model.close()
