"""Stage 8 · worker · who holds which KV cells, which prefix is known, and what to evict.

Pure bookkeeping beside llama.cpp's unified KV cache. A cell there holds one token and may belong to several sequences;
it is free again when the last of them lets go. The numbers here are ours and not llama.cpp's cell indices:
only the counts have to agree, and `tests/contract` compares them with the real thing.

    Holder: one sequence id of the context       tokens  [ 17  4  99  3  8 |51 ]   known = 6
                                                 cells   [  0  1   2  7  9 ]       past  = 5   (computed)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]


class Cells:
    """Reference counts of all cells."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._references = np.zeros(total, np.int32)
        self._free = np.arange(total - 1, -1, -1, dtype=np.int32)
        self.free = total

    @property
    def used(self) -> int:
        return self.total - self.free

    def take(self, count: int) -> Ids:
        """`count` fresh cells, each with one holder. The caller has made room before."""
        if count > self.free:
            raise ValueError(f"{count} cells wanted, {self.free} free")
        self.free -= count
        taken = self._free[self.free : self.free + count].copy()
        self._references[taken] = 1
        return taken

    def share(self, cells: Ids) -> None:
        """One more holder for each of `cells`."""
        self._references[cells] += 1

    def drop(self, cells: Ids) -> None:
        """One holder less for each of `cells`; those without a holder are free."""
        self._references[cells] -= 1
        freed = cells[self._references[cells] == 0]
        self._free[self.free : self.free + len(freed)] = freed
        self.free += len(freed)

    def exclusive(self, cells: Ids) -> int:
        """How many of `cells` would be free if one holder let go."""
        return int(np.count_nonzero(self._references[cells] == 1))

    def outside(self, holders: Iterable[Holder]) -> int:
        """How many used cells none of `holders` holds: what the cache costs everyone."""
        idle = self._references > 0
        for holder in holders:
            idle[holder.held] = False
        return int(np.count_nonzero(idle))


class Holder:
    """The tokens of one sequence id: `known` of them are decided, the first `past` of those have KV."""

    __slots__ = ("cells", "known", "past", "seq_id", "tokens")

    def __init__(self, seq_id: int, prompt: Ids, room: int) -> None:
        self.seq_id = seq_id
        self.tokens = np.zeros(len(prompt) + room, np.int32)
        self.tokens[: len(prompt)] = prompt
        self.known = len(prompt)
        self.cells = np.zeros(len(prompt) + room, np.int32)
        self.past = 0

    @property
    def held(self) -> Ids:
        return self.cells[: self.past]

    @property
    def remaining(self) -> int:
        return self.known - self.past

    def add_token(self, token: int) -> None:
        self.tokens[self.known] = token
        self.known += 1

    def grow(self, cells: Ids) -> None:
        """The next `len(cells)` tokens have KV now."""
        self.cells[self.past : self.past + len(cells)] = cells
        self.past += len(cells)


def common_prefix(left: Ids, right: Ids) -> int:
    """How many tokens `left` and `right` share from the start."""
    length = min(len(left), len(right))
    if length == 0 or left[0] != right[0]:
        return 0
    different = left[:length] != right[:length]
    first = int(different.argmax())
    return first if different[first] else length


def longest_prefix(tokens: Ids, holders: Iterable[Holder]) -> tuple[Holder | None, int]:
    """The holder whose computed tokens share most with `tokens`, and how many; (None, 0) if none does."""
    best: Holder | None = None
    longest = 0
    for holder in holders:
        if holder.past <= longest:
            continue
        length = common_prefix(tokens, holder.tokens[: holder.past])
        if length > longest:
            best, longest = holder, length
    return best, longest


def superseded(newer: Holder, cached: Iterable[Holder]) -> list[Holder]:
    """The cached holders whose every token `newer` holds as well."""
    tokens = newer.tokens[: newer.past]
    return [old for old in cached if common_prefix(tokens, old.tokens[: old.past]) == old.past]


def evictions(cells: Cells, oldest_first: Sequence[Holder], wanted: int) -> list[Holder]:
    """Which cached holders to drop so that `wanted` cells come free, oldest first; all of them if they do not suffice.

    Holders that would free nothing (all their cells are shared) are spared until sharing ends.
    """
    chosen: list[Holder] = []
    freed = 0
    for holder in oldest_first:
        if freed >= wanted:
            break
        alone = cells.exclusive(holder.held)
        if alone:
            chosen.append(holder)
            freed += alone
    return chosen if freed >= wanted else list(oldest_first)
