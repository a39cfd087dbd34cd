"""What `bench` measures, on the real engine: the same figures a worker would have."""

from __future__ import annotations

import os

import pytest

from metamusesd.config import Config
from metamusesd.engines.base import EngineSpec
from metamusesd.engines.measure import measure
from metamusesd.models import digest_of

pytest.importorskip("llama_cpp")


def test_a_real_model_is_measured_as_a_worker_runs_it() -> None:
    """Prompt tokens that were computed, tokens of all streams together; this process stays on its cores."""
    config = Config()
    path = config.model_path(config.models["smollm2"])
    if not path.is_file():
        pytest.skip(f"{path} is not there; run `metamusesd models fetch`")
    before = os.sched_getaffinity(0)
    spec = EngineSpec("llamacpp", "smollm2", str(path), digest_of(path), slots=2, reserve_slots=0, context=512)
    load, prompt, one, two, memory = measure(spec, [64], [1, 2])
    assert load["load_s"] > 0 and prompt["prompt"] == 64 and prompt["tokens_s"] > 10
    assert (one["streams"], two["streams"]) == (1, 2) and min(one["tokens_s"], two["tokens_s"]) > 1
    assert memory["rss_bytes"] > memory["private_bytes"] > 0
    assert os.sched_getaffinity(0) == before
