"""Stage 8 · worker · which engine runs a model, and from an EngineSpec to that engine; imports only that one.

file                       without a GPU    with one        engine = "auto" goes by this table
one GGUF file              llamacpp         llamacpp
directory of safetensors   mistralrs        mistralrs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metamusesd.engines.base import Engine, EngineSpec, Progress
from metamusesd.errors import ModelLoadFailed
from metamusesd.models import is_directory

GGUF, SAFETENSORS = "a GGUF file", "a directory of safetensors"
Load = Callable[[EngineSpec, Progress], Engine]


@dataclass(frozen=True, slots=True)
class Maker:
    """How an engine comes to be. `reads`: the formats that it takes; none: it has no model. `keeps`: the types of KV
    cache that it has beside f16."""

    load: Load
    reads: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()


def _echo(spec: EngineSpec, _: Progress) -> Engine:
    from metamusesd.engines.echo import EchoEngine

    return EchoEngine(spec)


def _llamacpp(spec: EngineSpec, progress: Progress) -> Engine:
    from metamusesd.engines.llamacpp import load

    return load(spec, progress)


def _mistralrs(spec: EngineSpec, progress: Progress) -> Engine:
    from metamusesd.engines.mistralrs import load

    return load(spec, progress)


ENGINES = {
    "llamacpp": Maker(_llamacpp, (GGUF,), keeps=("q8_0",)),
    "mistralrs": Maker(_mistralrs, (GGUF, SAFETENSORS)),
    "echo": Maker(_echo),
}
AUTO = {  # (format, whether the worker has a GPU) → (engine, why)
    (GGUF, False): ("llamacpp", "its kernels are the fastest for GGUF on a CPU"),
    (GGUF, True): ("llamacpp", "it batches by class and pre-empts, on a GPU as well"),
    (SAFETENSORS, False): ("mistralrs", "llama.cpp reads no safetensors"),
    (SAFETENSORS, True): ("mistralrs", "llama.cpp reads no safetensors"),
}


def choose(asked: str, path: str | Path, has_gpu: bool) -> tuple[str, str]:
    """(engine, why). `asked` is models.*.engine. Raises ModelLoadFailed when that engine cannot read what is there."""
    if asked != "auto" and asked not in ENGINES:
        raise ModelLoadFailed(f"there is no engine {asked!r}; use auto, {', '.join(ENGINES)}")
    found = SAFETENSORS if is_directory(Path(path)) else GGUF
    if asked == "auto":
        engine, why = AUTO[found, has_gpu]
        return engine, f"{path} is {found}{', with a GPU' if has_gpu else ''}: {why}"
    if ENGINES[asked].reads and found not in ENGINES[asked].reads:
        raise ModelLoadFailed(
            f"{path} is {found}; engine {asked} reads {' or '.join(ENGINES[asked].reads)}: "
            f"set engine to auto, or to {AUTO[found, has_gpu][0]}"
        )
    return asked, "the configuration names it"


def kv_problem(engine: str, kind: str) -> str:
    """Why this engine cannot keep its KV cache like that; empty: it can, or has none."""
    maker = ENGINES[engine]
    if kind == "f16" or kind in maker.keeps or not maker.reads:
        return ""
    able = " or ".join(name for name, other in ENGINES.items() if kind in other.keeps) or "none"
    return f"engine {engine} has no KV cache of {kind} ({able} has); leave kv_cache_type out"


def make_engine(spec: EngineSpec, progress: Progress = lambda _: None) -> Engine:
    """Load. Blocks for as long as the model takes; raises ModelNotFound or ModelLoadFailed."""
    if spec.engine not in ENGINES:
        raise ModelLoadFailed(f"there is no engine {spec.engine!r}; use {', '.join(ENGINES)}")
    if problem := kv_problem(spec.engine, spec.kv_cache_type):
        raise ModelLoadFailed(problem)
    try:
        return ENGINES[spec.engine].load(spec, progress)
    except ImportError as error:
        raise ModelLoadFailed(
            f"engine {spec.engine} is not installed: {error}; run `pip install 'metamusesd[{spec.engine}]'`"
        ) from error
