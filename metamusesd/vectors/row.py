"""Stage 4 · vectors process · its block of the board: that its loop turns, what it owes, what it has done."""

from __future__ import annotations

import os
import time

from metamusesd.board import Block
from metamusesd.cache.semantic import Semantic

RSS_EVERY_NS = 1_000_000_000
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Row:
    """Writes the block; the vectors process is its only writer. `remote`: the store is a server, and its silence is no
    fault of ours: only the embedder is owed an end."""

    def __init__(self, block: Block, semantic: Semantic, *, remote: bool) -> None:
        self.epoch = 0
        self._block, self._semantic, self._remote = block, semantic, remote
        self._rss_bytes = self._rss_ns = 0

    def beat(self) -> None:
        """The loop turns."""
        now_ns, semantic = time.monotonic_ns(), self._semantic
        counted = semantic.counted
        self._block.write(
            beat_ns=now_ns, pid=os.getpid(), epoch=self.epoch, asked=semantic.asked, done=semantic.done,
            oldest_ns=semantic.oldest_text_ns if self._remote else semantic.oldest_ns,
            hits=counted["hits"], misses=counted["misses"], failures=counted["failures"], entries=semantic.entries,
            text_ns=semantic.text_ns, rss_bytes=self._rss(now_ns),
        )  # fmt: skip

    def tending(self, begins: bool) -> None:
        """DANGER: written before the maintenance begins. It may hold the interpreter, and then no beat comes."""
        self._block.write(tending_ns=time.monotonic_ns() if begins else 0, beat_ns=time.monotonic_ns())

    def _rss(self, now_ns: int) -> int:
        if now_ns - self._rss_ns > RSS_EVERY_NS:
            self._rss_ns = now_ns
            with open("/proc/self/statm", "rb") as file:
                self._rss_bytes = int(file.read().split()[1]) * _PAGE_BYTES
        return self._rss_bytes
