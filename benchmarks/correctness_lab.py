"""Correctness benchmark · bench process · llama.cpp itself, without our engine around it.

Lab        a bare context with its layout of choice: what moves the logits?
Reference  llama-cpp-python's `Llama` as it comes: what would it have said next?
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from metamusesd.engines.llamacpp.kv import common_prefix
from metamusesd.engines.llamacpp.native import GGML_TYPES, Model

Rows = npt.NDArray[np.float32]
Entry = tuple[int, int, int]  # sequence, position, token
BATCH = 512
KINDS = {"f32": 0, **GGML_TYPES}
_C: Any = llama_cpp


class Lab:
    """One context of `cells` tokens; every token that is computed has logits."""

    def __init__(self, model: Model, *, flash: bool, kind: str = "f16", cells: int, sequences: int = 8) -> None:
        """`kind`: of the KV cache, one of KINDS."""
        params = _C.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_outputs_max = cells, sequences, BATCH
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type, params.kv_unified = int(flash), True
        params.type_k = params.type_v = KINDS[kind]
        self._context = _C.llama_init_from_model(model.pointer, params)
        self._memory = _C.llama_get_memory(self._context)
        self._vocabulary = model.vocabulary
        self._batch = _C.llama_batch_init(BATCH, 0, 1)

    def decode(self, entries: Sequence[Entry]) -> Rows:
        """The logits of these tokens, computed in one batch."""
        batch = self._batch
        for place, (sequence, position, token) in enumerate(entries):
            batch.token[place], batch.pos[place], batch.logits[place] = token, position, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
        batch.n_tokens = len(entries)
        if status := _C.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode says {status}")
        shape = (len(entries), self._vocabulary)
        return np.ctypeslib.as_array(_C.llama_get_logits(self._context), shape).copy()

    def prompt(self, sequence: int, tokens: Sequence[int], chunk: int, start: int = 0) -> Rows:
        """The logits of all tokens from `start` on, computed in chunks."""
        found = []
        for first in range(start, len(tokens), chunk):
            part = tokens[first : first + chunk]
            found.append(self.decode([(sequence, first + place, token) for place, token in enumerate(part)]))
        return np.concatenate(found)

    def copy(self, source: int, target: int, length: int) -> None:
        """The first `length` tokens of `source` also belong to `target`."""
        _C.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def clear(self) -> None:
        """Forget everything."""
        _C.llama_memory_clear(self._memory, True)

    def close(self) -> None:
        _C.llama_batch_free(self._batch)
        _C.llama_free(self._context)


class Reference:
    """`Llama` with its own defaults; like its `generate`, it goes on from the prefix that it has."""

    def __init__(self, model: Path, context: int, chunk: int = BATCH, kind: str = "f16", gpu_layers: int = 0) -> None:
        """`kind`: of the KV cache; f16, which is its default, with plain attention, the others with flash."""
        self._llama = _C.Llama(
            str(model), n_ctx=context, n_batch=chunk, n_threads=1, n_threads_batch=1, verbose=False,
            n_gpu_layers=gpu_layers, type_k=KINDS[kind], type_v=KINDS[kind], flash_attn=kind != "f16",
        )  # fmt: skip
        self._verdicts: dict[bytes, tuple[int, float]] = {}

    def logits(self, tokens: npt.NDArray[np.int32]) -> Rows:
        """What follows after `tokens`. The last token is always computed."""
        llama = self._llama
        known = common_prefix(llama.input_ids[: llama.n_tokens], tokens[:-1])
        llama.n_tokens = known
        llama.eval(tokens[known:].tolist())
        return np.ctypeslib.as_array(_C.llama_get_logits(llama.ctx), (llama.n_vocab(),)).copy()

    def verdict(self, tokens: npt.NDArray[np.int32]) -> tuple[int, float]:
        """Its greedy choice after `tokens`, and by how much it leads before the second best."""
        key = tokens.tobytes()
        if key not in self._verdicts:
            row = self.logits(tokens)
            second, first = np.partition(row, len(row) - 2)[-2:]
            self._verdicts[key] = int(row.argmax()), float(first - second)
        return self._verdicts[key]

    def close(self) -> None:
        self._llama.close()
