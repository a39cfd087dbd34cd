"""Schemas at speed, on a real model: compiled once for all jobs of a worker, and beside its step loop."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from metamusesd.engines.base import EngineSpec, Prepared, Task, Token
from metamusesd.job import InferenceRequest, Params, Priority
from tests.contract.engine_rig import HANDLES, model_file

STEPS = 5


def schema(name: str) -> dict[str, Any]:
    """Another one for each name, made anew at each call, as it comes with each job."""
    properties = {name: {"type": "string", "maxLength": 8}, "old": {"type": "boolean"}}
    return {"type": "object", "properties": properties, "required": [name, "old"], "additionalProperties": False}


def task(**params: Any) -> Task:
    wanted = Params(**({"max_tokens": 60, "temperature": 0.0} | params))
    return Task(next(HANDLES), InferenceRequest(user_query="Somebody, as JSON.", params=wanted), Priority.NORMAL)


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from metamusesd.engines.llamacpp import load

    made = load(EngineSpec("llamacpp", "smollm2", model_path=str(model_file()), slots=4, context=1024))
    yield made
    made.close()


def finish(engine: Any, prepared: Prepared) -> str:
    engine.admit(prepared)
    text = ""
    while engine.busy():
        text += "".join(event.text for event in engine.step() if isinstance(event, Token))
    return text


def test_jobs_of_one_schema_compile_it_once(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three jobs, one trial and one grammar in memory; each job stands at its own place in it."""
    from metamusesd.engines.llamacpp import grammar

    trials: list[object] = []
    run_in_child = grammar.run_in_child
    monkeypatch.setattr(grammar, "run_in_child", lambda attempt: trials.append(1) or run_in_child(attempt))
    jobs = [engine.prepare(task(json_schema=schema("name"))) for _ in range(3)]
    assert len(trials) == 1
    assert len({id(job.grammar) for job in jobs}) == 1
    answers = [json.loads(finish(engine, job)) for job in jobs]
    assert all(set(answer) == {"name", "old"} for answer in answers)
    engine.prepare(task(json_schema=schema("title")))
    assert len(trials) == 2


def test_streams_go_on_while_a_schema_is_compiled(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial waits for steps of the engine, which make tokens for another job meanwhile."""
    gate = multiprocessing.get_context("fork").Semaphore(0)  # reaches into the disposable process
    shelf = engine._preparer._grammars
    exercise = shelf._exercise

    def patient(text: str) -> None:
        assert gate.acquire(timeout=8)
        exercise(text)

    monkeypatch.setattr(shelf, "_exercise", patient)
    engine.admit(engine.prepare(task(ignore_eos=True)))
    prepared: list[Prepared] = []
    wanted = task(json_schema=schema("place"))
    thread = threading.Thread(target=lambda: prepared.append(engine.prepare(wanted)), daemon=True)
    thread.start()
    tokens = 0
    while tokens < STEPS:
        tokens += sum(event.tokens for event in engine.step() if isinstance(event, Token))
        assert not prepared
    gate.release()
    thread.join(20)
    assert prepared
    while engine.busy():
        engine.step()
    assert set(json.loads(finish(engine, prepared[0]))) == {"place", "old"}
