"""Stage 8 · worker · its row of the board: what it holds and how far it has come."""

from __future__ import annotations

import os
import time

from metamusesd.board import Block, WorkerState, milli
from metamusesd.engines.base import EngineStatistics
from metamusesd.worker.pipe import Pipe
from metamusesd.worker.vram import Gpus

RSS_EVERY_NS = 1_000_000_000
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Row:
    """Writes one worker block; the worker process is its only writer."""

    def __init__(self, block: Block, gpus: Gpus | None = None) -> None:
        self.jobs = 0  # ended since the start
        self.vram_wanted_bytes = 0  # what it takes of its GPUs, as it reckons before it loads
        self._gpus = gpus
        self._block = block
        self._steps = 0
        self._rss_bytes = self._rss_ns = 0

    def loading(self, share: float) -> None:
        """So much of the model, 0 to 1, is loaded; call it now and then, so that loading is seen to go on."""
        now_ns = time.monotonic_ns()
        permille = int(1000 * min(1.0, max(0.0, share)))
        self._block.write(
            state=WorkerState.LOADING, loaded_permille=permille, beat_ns=now_ns, rss_bytes=self._rss(now_ns)
        )

    def loaded(self, slots: int, reserve_slots: int) -> None:
        """Ready for its first link."""
        self._block.write(
            state=WorkerState.IDLE, loaded_permille=1000, slots=slots, reserve_slots=reserve_slots,
            beat_ns=time.monotonic_ns(),
        )  # fmt: skip

    def linked(self, epoch: int) -> None:
        """A new epoch begins."""
        self._block.write(epoch=epoch, frames_received=0, beat_ns=time.monotonic_ns())

    def received(self, frames: int) -> None:
        """Before a frame is looked at: should it be the last thing that this process does, that is to be seen."""
        taking = {} if self._block.get("slots_used") else {"state": WorkerState.TAKING}
        self._block.write(frames_received=frames, beat_ns=time.monotonic_ns(), **taking)

    def stepped(self, now: EngineStatistics, held: int, pipe: Pipe | None) -> None:
        """After every step."""
        self._steps += 1
        self._write(now, held, pipe, last_step_ns=time.monotonic_ns())

    def beat(self, now: EngineStatistics, held: int, pipe: Pipe | None) -> None:
        """Now and then, and after everything that came in, while there is nothing to compute."""
        self._write(now, held, pipe)

    def _write(self, now: EngineStatistics, held: int, pipe: Pipe | None, **more: int) -> None:
        now_ns = time.monotonic_ns()
        state = WorkerState.PREFILL if now.queued_prompt_tokens else WorkerState.DECODE
        if not held:
            state = WorkerState.IDLE
        elif pipe is not None and pipe.full:
            state = WorkerState.WAITING
        self._block.write(
            state=state, slots_used=now.slots_used, preempted=now.preempted,
            queued_prompt_tokens=now.queued_prompt_tokens, kv_cells=now.kv_cells, kv_cells_used=now.kv_cells_used,
            prefill_milli_rate=milli(now.prefill_rate), decode_milli_rate=milli(now.decode_rate), steps=self._steps,
            step_ns=now.step_ns, generated_tokens=now.generated_tokens, prompt_tokens=now.prompt_tokens, jobs=self.jobs,
            rss_bytes=self._rss(now_ns), frames_received=pipe.frames if pipe else 0, prefix_hits=now.prefix_hits,
            prefix_queries=now.prefix_queries, beat_ns=now_ns, **more,
        )  # fmt: skip

    def _rss(self, now_ns: int) -> int:
        if now_ns - self._rss_ns > RSS_EVERY_NS:
            self._rss_ns = now_ns
            with open("/proc/self/statm", "rb") as file:
                self._rss_bytes = int(file.read().split()[1]) * _PAGE_BYTES
            if self._gpus:
                memory = self._gpus.memory()
                self._block.write(
                    vram_total_bytes=memory.total, vram_used_bytes=memory.used, vram_wanted_bytes=self.vram_wanted_bytes
                )
        return self._rss_bytes
