"""Stage 8 · worker · every call into llama.cpp, with its checks. The only file that imports llama_cpp.

    Model    the weights and the vocabulary     thread-safe: used by `prepare` while a step computes
    Context  the KV cache and one batch         the step thread only
    Grammar  a grammar's state in one sequence  one thread at a time

The batch is one llama_batch whose arrays are numpy's, so that filling it is slice assignment: the loop around
llama_decode costs microseconds. Logits are read in place, as a numpy view of llama.cpp's own output buffer.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metamusesd.engines.base import EngineSpec, Progress
from metamusesd.engines.llamacpp import pages
from metamusesd.engines.llamacpp.footprint import wants_exact
from metamusesd.errors import EngineError, EngineFailed, ModelLoadFailed, ModelNotFound

os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # its handler starts a debugger under the crashing process

import llama_cpp

_C: Any = llama_cpp
Ids = npt.NDArray[np.int32]

CONTROL = 1 << 3 | 1 << 0  # LLAMA_TOKEN_ATTR_CONTROL | …_UNKNOWN: what special parsing would find
GGML_TYPES = {"f16": 1, "q8_0": 8}  # ggml_type of kv_cache_type
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
LOOK_NS = 10_000_000  # how often a running batch asks whether it is still wanted
ABORTED = 2  # what llama_decode says then
_UNHEARD = _C.ggml_abort_callback()  # a null pointer
_complaints: list[str] = []  # what llama.cpp logged last, for the message of a failed load


@_C.llama_log_callback  # type: ignore[untyped-decorator]
def _listen(level: int, text: bytes, _user: Any) -> None:
    if level in (3, 4):  # warning, error
        _complaints.append(text.decode("utf-8", "replace").strip())
        del _complaints[:-5]


def refusal(spec: EngineSpec, said: str) -> EngineError:
    """A load failed. For want of a GPU's memory it may do better later, though not for ever: others use it, too."""
    if spec.gpu_layers and any(sign in said for sign in ("out of memory", "failed to allocate", "unable to allocate")):
        return EngineFailed(said)
    return ModelLoadFailed(said)


class Model:
    """The weights and the vocabulary of one GGUF file."""

    def __init__(self, spec: EngineSpec, progress: Progress = lambda _: None) -> None:
        if not Path(spec.model_path).is_file():
            raise ModelNotFound(f"{spec.model_path}: no such model file", path=spec.model_path)
        _C.llama_log_set(_listen, ctypes.c_void_p(0))
        _C.llama_backend_init()
        self._open(spec, progress)
        self.vocab = _C.llama_model_get_vocab(self.pointer)
        self.vocabulary = int(_C.llama_vocab_n_tokens(self.vocab))
        self.trained_context = int(_C.llama_model_n_ctx_train(self.pointer))
        self.template = (_C.llama_model_chat_template(self.pointer, None) or b"").decode("utf-8", "replace")
        self.architecture = self.meta("general.architecture")

    def _open(self, spec: EngineSpec, progress: Progress) -> None:
        params = _C.llama_model_default_params()

        @_C.llama_progress_callback  # type: ignore[untyped-decorator]
        def listen(share: float, _user: Any) -> bool:
            progress(share)
            return True

        params.progress_callback = listen
        params.n_gpu_layers = spec.gpu_layers
        params.load_mode = _C.LLAMA_LOAD_MODE_MMAP_MLOCK if spec.mlock else _C.LLAMA_LOAD_MODE_MMAP
        params.use_extra_bufts = bool(spec.options.get("repack", True))
        if spec.tensor_split:
            most = _C.llama_max_devices()
            if len(spec.tensor_split) > most:
                raise ModelLoadFailed(f"tensor_split names {len(spec.tensor_split)} devices; llama.cpp takes {most}")
            self._split = (ctypes.c_float * most)(*spec.tensor_split)
            params.tensor_split = self._split
        if spec.mlock:
            pages.check_lock(spec.model_path)
        _complaints.clear()
        self.pointer = _C.llama_model_load_from_file(os.fsencode(spec.model_path), params)
        if not self.pointer:
            raise refusal(spec, f"{spec.model_path}: {'; '.join(_complaints) or 'llama.cpp cannot load it'}")
        if spec.mlock and not spec.gpu_layers:
            pages.check_locked(spec.model_path, "; ".join(_complaints))

    def meta(self, key: str) -> str:
        """A metadata value of the file, empty if it has none."""
        room = ctypes.create_string_buffer(256)
        length = _C.llama_model_meta_val_str(self.pointer, key.encode(), room, len(room))
        return room.value.decode("utf-8", "replace") if length >= 0 else ""

    @property
    def shares_prefixes(self) -> bool:
        """Whether one sequence's KV can begin another's: not with recurrent state or a sliding window."""
        pointer = self.pointer
        state = _C.llama_model_is_recurrent(pointer) or _C.llama_model_is_hybrid(pointer)
        return not state and _C.llama_model_n_swa(pointer) == 0

    @property
    def keeps_tokens(self) -> bool:
        """Whether a sequence's memory grows with its tokens: a recurrent one has one state, however long it is."""
        return not _C.llama_model_is_recurrent(self.pointer)

    @property
    def usable(self) -> bool:
        """Whether this is a model that generates text token by token."""
        pointer = self.pointer
        return bool(_C.llama_model_has_decoder(pointer)) and not (
            _C.llama_model_has_encoder(pointer) or _C.llama_model_is_diffusion(pointer)
        )

    def bos(self) -> int | None:
        """The token that every prompt begins with, None if the model wants none."""
        token = int(_C.llama_vocab_bos(self.vocab))
        return token if token >= 0 and _C.llama_vocab_get_add_bos(self.vocab) else None

    def special_texts(self) -> tuple[str, str]:
        """The texts of BOS and EOS for the template."""
        return self._text(int(_C.llama_vocab_bos(self.vocab))), self._text(int(_C.llama_vocab_eos(self.vocab)))

    def _text(self, token: int) -> str:
        return self.piece(token).decode("utf-8", "replace") if token >= 0 else ""

    def control_tokens(self) -> dict[str, int]:
        """All control tokens by text."""
        attribute, vocab = _C.llama_vocab_get_attr, self.vocab
        found = [token for token in range(self.vocabulary) if attribute(vocab, token) & CONTROL]
        return {text: token for token in found if (text := self._text(token))}

    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a generation."""
        ends, vocab = _C.llama_vocab_is_eog, self.vocab
        return frozenset(token for token in range(self.vocabulary) if ends(vocab, token))

    def piece(self, token: int) -> bytes:
        """The bytes of a token, control tokens spelled out."""
        for size in (64, 4096):
            room = ctypes.create_string_buffer(size)
            length = _C.llama_token_to_piece(self.vocab, token, room, size, 0, True)
            if length >= 0:
                return room.raw[:length]
        return b""

    def tokenize(self, text: str) -> list[int]:
        """The tokens of `text`, in which nothing is special and to which nothing is added. Thread-safe."""
        raw = text.encode("utf-8", "replace")
        room = np.empty(len(raw) + 8, np.int32)
        target = room.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = _C.llama_tokenize(self.vocab, raw, len(raw), target, len(room), False, False)
        if count < 0:
            raise ValueError(f"llama_tokenize wants room for {-count} tokens of {len(raw)} bytes")
        return [int(token) for token in room[:count]]

    def grammar(self, text: str) -> Grammar | None:
        """The grammar compiled, None if llama.cpp cannot parse it. Only for texts that a child process has survived."""
        pointer = _C.llama_sampler_init_grammar(self.vocab, text.encode(), b"root")
        return Grammar(self, pointer) if pointer else None

    def close(self) -> None:
        if self.pointer:
            _C.llama_model_free(self.pointer)
            self.pointer = None


class Grammar:
    """A compiled grammar and where in it one sequence stands."""

    def __init__(self, model: Model, pointer: Any) -> None:
        self._model, self._pointer = model, pointer

    def clone(self) -> Grammar:
        """The same grammar in the same state, for another sequence."""
        return Grammar(self._model, _C.llama_sampler_clone(self._pointer))

    def allows(self, tokens: Ids) -> npt.NDArray[np.bool_]:
        """For each of `tokens` whether it may come next."""
        room = np.zeros(len(tokens), _CANDIDATE)
        room["id"] = tokens
        array = _C.llama_token_data_array()
        array.data = ctypes.cast(room.ctypes.data, _C.llama_token_data_p)
        array.size, array.selected, array.sorted = len(tokens), -1, False
        _C.llama_sampler_apply(self._pointer, ctypes.byref(array))
        allowed: npt.NDArray[np.bool_] = np.isfinite(room["logit"])
        return allowed

    def accept(self, token: int) -> None:
        """Advance by `token`. DANGER: llama.cpp ends the process if `allows` has not said yes to it."""
        _C.llama_sampler_accept(self._pointer, token)

    def __del__(self) -> None:
        if self._pointer and _C is not None:
            _C.llama_sampler_free(self._pointer)
            self._pointer = None


class Context:
    """The KV cache of all sequences, and the batch that computes on it."""

    def __init__(self, model: Model, spec: EngineSpec, cells: int, sequences: int, batch: int) -> None:
        _check(spec)
        _complaints.clear()
        self.pointer = _C.llama_init_from_model(model.pointer, self._params(spec, cells, sequences, batch))
        if not self.pointer:
            raise refusal(spec, f"no context of {cells} tokens: {'; '.join(_complaints) or 'not enough memory?'}")
        self.cells = int(_C.llama_n_ctx(self.pointer))
        self._memory = _C.llama_get_memory(self.pointer)
        self._shape = (sequences, model.vocabulary)
        self._address, self._view = 0, np.empty(self._shape, np.float32)
        self.limit = batch
        self._make_batch(batch)

    def _params(self, spec: EngineSpec, cells: int, sequences: int, batch: int) -> Any:
        params = _C.llama_context_default_params()
        params.n_ctx, params.n_seq_max = cells, sequences
        params.n_batch = params.n_ubatch = batch
        params.n_outputs_max = sequences  # at least: llama.cpp reserves its graph for one output a sequence
        params.n_threads = params.n_threads_batch = spec.threads
        params.flash_attn_type = 1 if spec.flash_attention else 0
        params.type_k = params.type_v = GGML_TYPES[spec.kv_cache_type]
        params.kv_unified = not wants_exact(spec)  # DANGER: a partial copy between sequences aborts the process then
        params.offload_kqv = params.op_offload = spec.gpu_layers != 0
        params.no_perf = True
        return params

    def _make_batch(self, size: int) -> None:
        """One llama_batch on numpy arrays, each token with exactly one sequence id."""
        self.tokens, self.positions, self.sequences = (np.zeros(size, np.int32) for _ in range(3))
        self.wanted = np.zeros(size, np.int8)  # 1: logits of this token
        self._ones = np.ones(size, np.int32)
        self._ids = (self.sequences.ctypes.data + 4 * np.arange(size)).astype(np.uint64)
        self._batch = _C.llama_batch()
        for name, array in (
            ("token", self.tokens),
            ("pos", self.positions),
            ("n_seq_id", self._ones),
            ("seq_id", self._ids),
            ("logits", self.wanted),
        ):
            kind = dict(_C.llama_batch._fields_)[name]
            setattr(self._batch, name, ctypes.cast(array.ctypes.data, kind))

    def decode(self, count: int, interrupted: Callable[[], bool] | None = None) -> int:
        """Compute the first `count` entries of the batch. 0: done; 1: no cells; else: failed (resynchronize).

        `interrupted` is asked now and then on this thread; after a yes ABORTED comes back, and the batch's sequences
        have some of its tokens or none (resynchronize). It must not raise: ctypes would drop that. llama.cpp calls its
        callback between two nodes of the graph, a microsecond each, and on a CPU alone: a GPU computes on.
        """
        if not 0 < count <= self.limit:
            raise ValueError(f"a batch of {count} tokens; the limit is {self.limit}")
        self._batch.n_tokens = count
        if interrupted is None:
            return int(_C.llama_decode(self.pointer, self._batch))
        listen = _listener(interrupted)
        _C.llama_set_abort_callback(self.pointer, listen, None)
        try:
            return int(_C.llama_decode(self.pointer, self._batch))
        finally:
            _C.llama_set_abort_callback(self.pointer, _UNHEARD, None)

    def logits(self) -> npt.NDArray[np.float32]:
        """The outputs of the last decode, one row for each wanted token in batch order. Valid until the next one."""
        address = ctypes.addressof(_C.llama_get_logits(self.pointer).contents)
        if address != self._address:
            size = self._shape[0] * self._shape[1]
            buffer: Any = (ctypes.c_float * size).from_address(address)
            flat: npt.NDArray[np.float32] = np.frombuffer(buffer, np.float32)
            self._address, self._view = address, flat.reshape(self._shape)
        return self._view

    def copy(self, source: int, target: int, length: int) -> None:
        """The first `length` tokens of `source` also belong to `target` now."""
        _C.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def remove(self, sequence: int, start: int = 0) -> bool:
        """Forget `sequence` from token `start` on. False if the memory cannot do it in part."""
        return bool(_C.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def length(self, sequence: int) -> int:
        """How many tokens of `sequence` are there, by llama.cpp's own account."""
        return int(_C.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def close(self) -> None:
        if self.pointer:
            _C.llama_free(self.pointer)
            self.pointer = None


def _check(spec: EngineSpec) -> None:
    """What cannot go together. Raises ModelLoadFailed."""
    if wants_exact(spec) and spec.gpu_layers:
        raise ModelLoadFailed("options.deterministic: kept on a CPU only; set gpu_layers = 0, or leave it out")
    if spec.kv_cache_type not in GGML_TYPES:
        raise ModelLoadFailed(f"kv_cache_type: {spec.kv_cache_type!r} is not known; use {', '.join(GGML_TYPES)}")
    if spec.kv_cache_type != "f16" and not spec.flash_attention:
        raise ModelLoadFailed(
            f'kv_cache_type: {spec.kv_cache_type} wants flash attention; set flash_attention = true, or "f16"'
        )


def _listener(interrupted: Callable[[], bool]) -> Any:
    """llama.cpp's abort callback: quick, for it is called a thousand times a batch."""
    clock, due_ns, over = time.monotonic_ns, time.monotonic_ns() + LOOK_NS, False

    def listen(_: Any) -> bool:
        nonlocal due_ns, over
        if clock() >= due_ns and not over:
            over = interrupted()
            due_ns = clock() + LOOK_NS
        return over

    return _C.ggml_abort_callback(listen)


def quantize(source: str, target: str, file_type: int, threads: int) -> bool:
    """Write `source` in another format. False: llama.cpp refused. Call it in a process that may die: it can abort."""
    _C.llama_backend_init()
    params = _C.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = file_type, threads, True
    return int(_C.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))) == 0
