"""Stage 4 · vectors process · copy the living entries of a shard into a fresh one, a slice at a time.

A removed entry leaves a dead row, and Edge gives its place back only in optimize(), which holds the interpreter lock.
So the store copies: 50 entries a slice (5 ms), and every write in between goes to both shards. That needs no journal:
a slice and a write never overlap (one thread), and what a later slice copies is what the older shard holds by then.
"""

from __future__ import annotations

from metamusesd.cache.edge import Offset, Shard

SLICE = 50
LEAST_DEAD = 20_000
FLUSH_SLICES = 20  # one flush at the end would take a tenth of a second, and searches wait


def is_due(dead: int, living: int) -> bool:
    """More dead rows than living ones, and so many that the disk notices."""
    return dead >= max(LEAST_DEAD, living)


class Compaction:
    """From `old` to `new`. Call `step` until it says True; apply every write to both meanwhile."""

    def __init__(self, old: Shard, new: Shard) -> None:
        self.old, self.new = old, new
        self._offset: Offset = None
        self._slices = 0

    def step(self) -> bool:
        """Copy a slice; True: that was the last one. Blocks for 5 ms, for 25 with a flush.

        Raises StoreFailed; then give `new` up.
        """
        points, self._offset = self.old.page(self._offset, SLICE)
        self.new.put_raw(points)
        self._slices += 1
        if self._slices % FLUSH_SLICES == 0:
            self.new.flush()
        return self._offset is None
