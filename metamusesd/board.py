"""The board: one table in shared memory of every worker's load and progress.

An anonymous mapping, made before the fork and without a name: nothing to leak, nothing that an outsider can unlink.
Every figure is one aligned 64-bit word; every block has one writer and a sequence word that is odd while it is
written.

    word 0                                                                        (64 bytes = one cache line)
    ┌─ header ─┬─ dispatcher: 3 lines ─┬─ queues: 6 lines ─┬─ vectors: 2 lines ─┬─ frames sent: a word a row ─┐
    ├─ metrics page ─┬─ rows … ─┐
    row of a worker slot (6 lines)
    ┌─ by the worker: 4 lines (sequence, WORKER_FIELDS) ─┬─ by the supervisor: 2 lines (sequence, SLOT_FIELDS) ─┐

The board advises and never authorises: only a worker's reply admits a job. A reader that meets an odd or changed
sequence tries again a bounded number of times and then calls the block stale (None). DANGER: this relies on stores
becoming visible in program order (x86-64, and CPython executes far more than a store buffer's worth between two
words); on a weaker machine a torn read is possible in theory and is again only advice. No locks here: the holder of a
lock may be SIGKILLed.
"""

from __future__ import annotations

import enum
import mmap
from collections.abc import Mapping

from metamusesd.tiers import TIERS

WORD = 8
LINE = 8  # words in a cache line
MAX_ROWS = 64
METRIC_WORDS = 8192
READ_TRIES = 64

WORKER_FIELDS = (
    "state", "loaded_permille", "epoch", "slots", "reserve_slots", "slots_used", "preempted", "queued_prompt_tokens",
    "kv_cells", "kv_cells_used", "prefill_milli_rate", "decode_milli_rate", "steps", "last_step_ns", "step_ns",
    "generated_tokens", "prompt_tokens", "jobs", "rss_bytes", "frames_received", "prefix_hits", "prefix_queries",
    "beat_ns", "vram_total_bytes", "vram_used_bytes", "vram_wanted_bytes",
)  # fmt: skip
SLOT_FIELDS = (
    "pid", "generation", "restarts", "status", "cores_mask", "since_ns", "last_exit",
    "patience_ms",  # how long it may now go without progress before it is killed
)  # fmt: skip
DISPATCHER_FIELDS = (
    "beat_ns", "started_ns", "pid", "epoch", "running", "redis_ok", "redis_since_ns", "draining", "workers",
    "queues_ns", "loop_lag_ns", "claims", "settled", "redis_trouble", "faults",
)  # fmt: skip
VECTORS_FIELDS = (
    "beat_ns", "pid", "epoch", "asked", "done",
    "oldest_ns",  # since when the oldest question is at work that nobody else keeps waiting; 0: none
    "tending_ns",  # since when its store does its maintenance, which may hold the interpreter for minutes; 0: none
    "hits", "misses", "failures", "entries", "text_ns", "rss_bytes",
)  # fmt: skip
QUEUES = ("ingress", *TIERS)
_QUEUE_PARTS = ("low", "normal", "high", "critical", "oldest_ms")
QUEUE_FIELDS = tuple(f"{queue}.{part}" for queue in QUEUES for part in _QUEUE_PARTS)


class WorkerState(enum.IntEnum):
    """What a worker says of itself."""

    EMPTY = 0
    LOADING = 1
    IDLE = 2
    PREFILL = 3
    DECODE = 4
    DRAINING = 5
    STOPPED = 6
    WAITING = 7  # the dispatcher reads too slowly: no step until it has
    TAKING = 8  # it held nothing, and looks at what has come; the first step with it is included


class SlotStatus(enum.IntEnum):
    """What the supervisor says of a worker slot."""

    UNUSED = 0
    STARTING = 1
    READY = 2
    BACKOFF = 3  # died; a new one starts after a pause
    STOPPING = 4
    STOPPED = 5
    FAILED = 6  # gave up: permanent error, or the restart budget is spent
    ASLEEP = 7  # unloaded while nobody uses it; it starts when it is wanted


class RedisTrouble(enum.IntEnum):
    """Why the dispatcher cannot work with Redis; QueueUnavailable.trouble is the name in lower case."""

    NONE = 0
    UNREACHABLE = 1  # no connection, or no answer in time
    LOADING = 2  # it reads its file
    MEMORY = 3  # OOM: maxmemory is reached
    READ_ONLY = 4  # a replica, or a former primary
    DISK = 5  # MISCONF: it cannot write its file
    BUSY = 6  # a script or a fail-over keeps it
    DENIED = 7  # the user may not do that
    POLICY = 8  # its eviction policy or its version would lose jobs
    FAULT = 9  # a key of a wrong type is in the way of claiming


class Block:
    """A run of words with one writer, guarded by a sequence word. Values are integers from 0 to 2⁶⁴ - 1."""

    def __init__(self, words: memoryview, fields: tuple[str, ...]) -> None:
        self._words = words
        self._index = {name: position for position, name in enumerate(fields, start=1)}

    def write(self, **values: int) -> None:
        """Store some of the fields. Only the block's one writer may call this."""
        words, index = self._words, self._index
        sequence = words[0] | 1  # odd; also heals a block whose writer was killed in the middle
        words[0] = sequence
        for name, value in values.items():
            words[index[name]] = value
        words[0] = (sequence + 1) & 0xFFFF_FFFF_FFFF_FFFE

    def read(self) -> dict[str, int] | None:
        """All fields as of one moment, or None when the block is stale (its writer died while writing)."""
        words, end = self._words, len(self._index) + 1
        for _ in range(READ_TRIES):
            before = words[0]
            copy = words[1:end].tolist()
            if not before & 1 and words[0] == before:
                return dict(zip(self._index, copy, strict=True))
        return None

    def get(self, field: str) -> int:
        """One field, unguarded: one word is never torn."""
        return self._words[self._index[field]]

    def clear(self) -> None:
        """All fields to zero."""
        self.write(**dict.fromkeys(self._index, 0))


class Board:
    """The whole table. Make it once, in the supervisor, before any fork; children inherit it."""

    def __init__(self, rows: int) -> None:
        if not 1 <= rows <= MAX_ROWS:
            raise ValueError(f"a board has 1 to {MAX_ROWS} rows, not {rows}")
        self.rows = rows
        row_words, fixed = 6 * LINE, LINE + 3 * LINE + 6 * LINE + 2 * LINE
        total = fixed + MAX_ROWS + METRIC_WORDS + rows * row_words
        self._map = mmap.mmap(-1, total * WORD)
        words = memoryview(self._map).cast("Q")
        self.dispatcher = Block(words[LINE : 4 * LINE], DISPATCHER_FIELDS)
        self.queues = Block(words[4 * LINE : 10 * LINE], QUEUE_FIELDS)
        self.vectors = Block(words[10 * LINE : fixed], VECTORS_FIELDS)
        self._frames_sent = words[fixed : fixed + MAX_ROWS]
        self.metric_words = words[fixed + MAX_ROWS : fixed + MAX_ROWS + METRIC_WORDS]
        starts = [total - (rows - row) * row_words for row in range(rows)]
        self.workers = [Block(words[start : start + 4 * LINE], WORKER_FIELDS) for start in starts]
        self.slots = [Block(words[start + 4 * LINE : start + 6 * LINE], SLOT_FIELDS) for start in starts]

    def add_frame_sent(self, row: int) -> None:
        """Dispatcher: one more frame went to this worker in its present epoch."""
        self._frames_sent[row] += 1

    def reset_frames_sent(self, row: int) -> None:
        """Dispatcher: a new epoch of the pipe begins."""
        self._frames_sent[row] = 0

    def frames_sent(self, row: int) -> int:
        """Frames that the dispatcher has sent to this worker in its present epoch."""
        return self._frames_sent[row]


def milli(rate: float) -> int:
    """A rate as the board stores it."""
    return max(0, int(rate * 1000))


def rates(fields: Mapping[str, int]) -> tuple[float, float]:
    """(prefill, decode) in tokens/s out of a worker block."""
    return fields["prefill_milli_rate"] / 1000, fields["decode_milli_rate"] / 1000
