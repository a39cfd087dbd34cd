"""Engines for the contract suites, and short words for what tests do with one."""

from __future__ import annotations

import importlib.util
import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from metamusesd.engines.base import Engine, EngineSpec, Finished, Task, Token
from metamusesd.engines.choice import make_engine
from metamusesd.job import InferenceRequest, Params, Priority
from tests.contract.made_gguf import MAKERS, make
from tests.contract.tiny_model import make_tiny_model

HANDLES = itertools.count(1)
GPU_LAYERS = int(os.environ.get("GPU_LAYERS", "0"))  # of the llamacpp engines of these suites; `make test-gpu`
ON_CPU_ONLY = pytest.mark.skipif(GPU_LAYERS > 0, reason="a GPU computes on, and promises no equal bits")


def model_file() -> Path:
    folder = Path(os.environ.get("MODELS_DIR") or Path(__file__).parents[2] / "models")
    found = sorted(folder.rglob("*SmolLM2-135M*.gguf"))
    if not found:
        pytest.skip(f"no SmolLM2 GGUF below {folder}: `make models` fetches it")
    return found[0]


def needs_mistralrs() -> None:
    """Skips. An import would come before the surroundings that mistral.rs reads when it is imported."""
    if importlib.util.find_spec("mistralrs") is None:
        pytest.skip("mistralrs is not installed: pip install 'metamusesd[mistralrs]'")


def make_mistral(path: Path, **changes: Any) -> Engine:
    """Mistral.rs in this process. Its threads take what the first one was given, so all tests give one."""
    needs_mistralrs()
    values: dict[str, Any] = {"slots": 2, "reserve_slots": 1, "context": 512, "threads": 1}
    return make_engine(EngineSpec("mistralrs", "tiny", str(path), **(values | changes)))


def make_any(kind: str, place: Path) -> Engine:
    """An engine of each kind: two slots, one in reserve, a context of 128 tokens. `llamacpp-q8_0` keeps such KV, and
    `llamacpp-mamba` has a made model of that architecture, on the CPU."""
    if kind == "mistralrs":
        return make_mistral(make_tiny_model(place), context=128)
    name, _, kept = kind.partition("-")
    values: dict[str, Any] = {"slots": 2, "reserve_slots": 1, "context": 128, "gpu_layers": GPU_LAYERS}
    if name == "llamacpp":
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
        if kept in MAKERS:
            values |= {"model_path": str(make(kept, place / f"{kept}.gguf")), "gpu_layers": 0}
        else:
            values |= {"model_path": str(model_file()), "kv_cache_type": kept or "f16"}
    return make_engine(EngineSpec(name, name, **values))


@dataclass
class Run:
    """Collects what an engine says about each handle. Greedy, unless `params` say otherwise."""

    engine: Any
    events: list[Token | Finished] = field(default_factory=list)

    def admit(self, query: str, priority: Priority = Priority.NORMAL, aged: bool = False, **changes: Any) -> int:
        params = Params(**({"max_tokens": 8, "temperature": 0.0} | changes.pop("params", {})))
        request = InferenceRequest(user_query=query, params=params, **changes)
        handle = next(HANDLES)
        self.engine.admit(self.engine.prepare(Task(handle, request, priority, aged)))
        return handle

    def step(self) -> None:
        self.events += self.engine.step()

    def until_first(self, handle: int) -> None:
        while not self.of(handle):
            self.step()

    def finish(self) -> Run:
        while self.engine.busy():
            self.step()
        return self

    def of(self, handle: int) -> list[Token | Finished]:
        return [event for event in self.events if event.handle == handle]

    def text(self, handle: int) -> str:
        return "".join(event.text for event in self.of(handle) if isinstance(event, Token))

    def end(self, handle: int) -> Finished:
        (end,) = [event for event in self.of(handle) if isinstance(event, Finished)]
        return end


def answer(engine: Any, query: str, **changes: Any) -> str:
    run = Run(engine)
    handle = run.admit(query, **changes)
    return run.finish().text(handle)
