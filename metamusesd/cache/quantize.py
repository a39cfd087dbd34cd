"""Stage 0 · command line · derive an embedder that computes in 8 bit from the fetched one, which only stores in 8 bit.

all-MiniLM-L6-v2's int8 file has its weights in 8 bit and computes in float: reading 42 MB of unpacked weights is what a
short question costs. With dynamic quantization (onnxruntime.quantization) activations are 8 bit as well: 2.4 times as
fast on a core with VNNI. Seven bits a weight (`reduce_range`), because without VNNI the sums of eight would saturate,
and the vectors of two hosts would differ. The vectors differ a little from the source's, so it is another vector space:
its own file, its own identity (embedder.py), its own collection.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from metamusesd.errors import EmbedderFailed

SOURCE = "model.onnx"
ROUNDS = 60
LEAST_GAIN = 1.15  # less is not worth another vector space
PROBE_TOKENS = 17


def derived_path(directory: Path) -> Path:
    """Where the derived file of the present source is. Reads the source: 20 ms. Raises EmbedderFailed."""
    try:
        digest = hashlib.sha256((directory / SOURCE).read_bytes()).hexdigest()
    except OSError as error:
        raise EmbedderFailed(f"{directory / SOURCE} cannot be read: {error.strerror}") from error
    return directory / f"model.dynamic-{digest[:12]}.onnx"


def derive(directory: Path) -> str:
    """Make it, unless it is there or would not pay on this host; a line for people. Blocks for some seconds. Raises
    EmbedderFailed; then the source serves as before."""
    target = derived_path(directory)
    if target.is_file() and loads(target):
        return f"{target}  {target.stat().st_size / 1e6:.1f} MB  computes in 8 bit"
    for left in directory.glob(".derive-*"):  # of one that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".derive-", dir=directory) as folder:
            made = _quantized(directory / SOURCE, Path(folder))
            gain = _run_ms(directory / SOURCE) / _run_ms(made)
            if gain < LEAST_GAIN:
                return f"{directory / SOURCE}  stays as it is: 8-bit arithmetic would be {gain:.1f} times as fast here"
            made.chmod(0o644)
            with open(made, "rb") as file:
                os.fsync(file.fileno())
            made.replace(target)
    except ImportError as error:
        raise EmbedderFailed(f"a library is missing: {error}; pip install 'metamusesd[cache]'") from error
    except Exception as error:  # onnx and onnxruntime each raise their own
        raise EmbedderFailed(f"{directory / SOURCE} cannot be quantized: {error}") from error
    return f"{target}  {target.stat().st_size / 1e6:.1f} MB  computes in 8 bit, {gain:.1f} times as fast here"


def loads(path: Path) -> bool:
    """Whether this file can be used: a power cut may have left half of it, or nobody else may read it."""
    try:
        _session(path)
        return True
    except Exception:  # onnxruntime's errors have no common class
        return False


def _session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), _options(), providers=["CPUExecutionProvider"])


def _quantized(source: Path, folder: Path) -> Path:
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    folded, made = folder / "folded.onnx", folder / "made.onnx"
    options = _options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # unpacks the weights
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    logging.getLogger().setLevel(logging.ERROR)  # it advises everybody to pre-process, on the root logger
    quantize_dynamic(
        str(folded), str(made), weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
        op_types_to_quantize=["MatMul"],
    )  # fmt: skip
    return made


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # a file that does not load is no news here
    return options


def _run_ms(path: Path) -> float:
    """The best of some runs with a short question on one thread."""
    import numpy as np

    session = _session(path)
    ids = np.arange(2000, 2000 + PROBE_TOKENS, dtype=np.int64)[None]
    known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    feeds = {each.name: known[each.name] for each in session.get_inputs()}
    best_ns = min(_timed_ns(session, feeds) for _ in range(ROUNDS))
    return best_ns / 1e6


def _timed_ns(session: Any, feeds: Any) -> int:
    begun_ns = time.perf_counter_ns()
    session.run(None, feeds)
    return time.perf_counter_ns() - begun_ns
