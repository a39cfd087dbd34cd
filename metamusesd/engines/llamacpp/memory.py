"""Stage 8 · worker · the KV cache of the context and our account of it, changed together.

Every sequence id is free, held by a living sequence, or kept in the cache of finished ones (least recently used
first). What is cached but idle costs every step, because attention walks over it, so the idle cells have a limit of
their own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from metamusesd.engines.llamacpp import kv
from metamusesd.engines.llamacpp.native import Context

LEAST_SHARED = 8  # tokens: shorter prefixes are not worth a copy or a place in the cache


class Memory:
    """Sequence ids and cells of one context."""

    def __init__(self, context: Context, sequences: int, idle_limit: int, shares: bool) -> None:
        self.cells = kv.Cells(context.cells)
        self.cached: OrderedDict[int, kv.Holder] = OrderedDict()
        self._context, self._shares, self._idle_limit = context, shares, idle_limit
        self._free_ids = list(range(sequences - 1, -1, -1))

    def new_id(self) -> int:
        """The smallest free sequence id; the oldest cached one gives way if there is none."""
        if not self._free_ids:
            self.forget(next(iter(self.cached.values())))
        return self._free_ids.pop()

    def shared_length(self, prompt: npt.NDArray[np.int32], living: Iterable[kv.Holder]) -> int:
        """How many tokens of `prompt` have KV somewhere already."""
        return self._find(prompt, living)[1]

    def adopt(self, hold: kv.Holder, living: Iterable[kv.Holder]) -> int:
        """Give `hold`, which has no KV, the longest known prefix of its tokens; its length comes back.

        The last token is always left to compute: its logits are what the next token comes from.
        """
        source, length = self._find(hold.tokens[: hold.known], (other for other in living if other is not hold))
        if source is None:
            return 0
        self._context.copy(source.seq_id, hold.seq_id, length)
        shared = source.cells[:length]
        self.cells.share(shared)
        hold.grow(shared)
        if source.seq_id in self.cached:
            self.cached.move_to_end(source.seq_id)
        return length

    def _find(self, tokens: npt.NDArray[np.int32], living: Iterable[kv.Holder]) -> tuple[kv.Holder | None, int]:
        if not self._shares:
            return None, 0
        source, length = kv.longest_prefix(tokens[:-1], [*self.cached.values(), *living])
        return (source, length) if length >= LEAST_SHARED else (None, 0)

    def keep(self, hold: kv.Holder, living: Iterable[kv.Holder]) -> None:
        """A sequence has ended: keep its KV for others to begin with, within the limits."""
        if not self._shares or hold.past < LEAST_SHARED:
            self.forget(hold)
            return
        hold.known = hold.past
        for old in kv.superseded(hold, self.cached.values()):
            self.forget(old)
        self.cached[hold.seq_id] = hold
        excess = self.cells.outside(living) - self._idle_limit
        if excess > 0:
            older = [other for other in self.cached.values() if other is not hold]
            for other in kv.evictions(self.cells, older, excess):
                self.forget(other)
            self.trim(hold, max(0, self.cells.outside(living) - self._idle_limit))

    def trim(self, hold: kv.Holder, excess: int) -> None:
        """Shorten a cached holder by `excess` tokens at its end."""
        length = hold.past - excess
        if excess and (length < LEAST_SHARED or not self._context.remove(hold.seq_id, length)):
            self.forget(hold)
        elif excess:
            self.cells.drop(hold.cells[length : hold.past])
            hold.past = hold.known = length

    def drop(self, hold: kv.Holder) -> None:
        """Drop the KV of a sequence that lives on."""
        self._context.remove(hold.seq_id)
        self.cells.drop(hold.held)
        hold.past = 0

    def forget(self, hold: kv.Holder) -> None:
        """Drop the KV and free the sequence id."""
        self.drop(hold)
        self.cached.pop(hold.seq_id, None)
        self._free_ids.append(hold.seq_id)
        self._free_ids.sort(reverse=True)

    def make_room(self, wanted: int) -> bool:
        """Evict cached sequences until `wanted` cells are free. False if that does not suffice."""
        if self.cells.free < wanted:
            for hold in kv.evictions(self.cells, list(self.cached.values()), wanted - self.cells.free):
                self.forget(hold)
        return self.cells.free >= wanted

    def forget_cached(self) -> bool:
        """Drop everything that no living sequence needs. False if there was nothing."""
        cached = list(self.cached.values())
        for hold in cached:
            self.forget(hold)
        return bool(cached)

    def resynchronize(self, hold: kv.Holder) -> bool:
        """After a failed decode: agree with llama.cpp about `hold` again. False if KV that we relied on is gone, or if
        what was added cannot be taken back, as in a recurrent state."""
        there = self._context.length(hold.seq_id)
        return there == hold.past or (there > hold.past and self._context.remove(hold.seq_id, hold.past))

    def recover(self, holds: Iterable[kv.Holder]) -> None:
        """After an interrupted decode: each of `holds` is as it was before, or without KV, to be computed again."""
        for hold in holds:
            if not self.resynchronize(hold):
                self.drop(hold)
