"""One trace a job: its spans at a real receiver, their parents, and what they say; never what was asked."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from metamusesd import tracing
from metamusesd.dispatcher.caching import Rules
from metamusesd.dispatcher.traces import Traces
from metamusesd.log import get_logger
from metamusesd.tracing import Exporter
from metamusesd.wire import Finished, Frame, Refused, Token
from tests.unit.collector import Collector, Got
from tests.unit.dispatcher.stage import Fragile, PlayedWorker, Stage

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "xyzzy-secret"
ASKED: dict[str, Any] = {"user_query": SECRET, "tier": "fast", "params": {"max_tokens": 7, "seed": 5}}
TRACED = json.dumps(ASKED | {"traceparent": f"00-{TRACE}-{PARENT}-01"}).encode()


class Recorder:
    """A collector, and exporters that send to it at once."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self._exporters: list[Exporter] = []

    def watch(self, stage: Stage, share: float = 1.0) -> Exporter:
        exporter = Exporter(self.collector.endpoint, "here")
        self._exporters.append(exporter)
        stage.dispatcher.traces = Traces(exporter, share, get_logger("test"))
        return exporter

    async def wait(self, *names: str) -> dict[str, Got]:
        return await asyncio.to_thread(self.collector.wait, *names)

    async def close(self) -> None:
        for exporter in self._exporters:
            exporter.close(done := threading.Event())
            assert await asyncio.to_thread(done.wait, 20)


@pytest.fixture
async def recorder(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Recorder]:
    monkeypatch.setattr(tracing, "BATCH_MS", 10)
    with Collector() as collector:
        made = Recorder(collector)
        yield made
        await made.close()


async def answer(worker: PlayedWorker) -> None:
    """Its next order, with a prompt that took 5 ms."""
    [order] = await worker.orders()
    await worker.send(Frame.EVENTS, [Token(order.handle, "Paris", 1, True)])
    end = Finished(order.handle, "stop", None, 9, 2, cached_tokens=3, prefill_ms=5.0, decode_ms=2.0)
    await worker.send(Frame.EVENTS, [Token(order.handle, ".", 1), end])


async def test_a_job_is_one_trace_under_its_producers_span(stage: Stage, recorder: Recorder) -> None:
    """Every part, each under its parent, in order, inside the job's own span; figures, and no text."""
    recorder.watch(stage)
    worker = await stage.worker()
    id = await stage.submit(TRACED, tenant="acme")
    await answer(worker)
    found = await recorder.wait("chat m", "settle")
    parts = ["wait for routing", "route", "cache lookup", "wait in queue", "attempt", "settle"]
    phases = ["prepare", "prefill", "decode"]
    assert sorted(span.name for span in recorder.collector.spans) == sorted(["chat m", *parts, *phases])
    assert {span.trace for span in recorder.collector.spans} == {TRACE}
    whole = found["chat m"]
    assert whole.parent == PARENT and not whole.error
    assert {found[name].parent for name in parts} == {whole.id}
    assert {found[name].parent for name in phases} == {found["attempt"].id}
    times = [(found[name].start_ns, found[name].end_ns) for name in (*parts[:4], *phases, "settle")]
    assert all(start <= end for start, end in times)
    assert all(one[1] <= next[0] + 2_000_000 for one, next in itertools.pairwise(times)), times  # ms clocks
    assert whole.start_ns <= found["route"].start_ns + 2_000_000 and found["settle"].end_ns <= whole.end_ns + 2_000_000
    assert found["prefill"].end_ns - found["prefill"].start_ns <= 5_000_000
    assert whole.facts == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "metamusesd", "gen_ai.request.max_tokens": 7,
        "gen_ai.request.seed": 5, "gen_ai.request.stream": True, "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ["stop"], "gen_ai.usage.input_tokens": 9, "gen_ai.usage.output_tokens": 2,
        "metamusesd.job": id, "metamusesd.tenant": "acme", "metamusesd.class": "normal", "metamusesd.state": "done",
        "metamusesd.tier": "fast", "metamusesd.worker": "fast-0",
    }  # fmt: skip
    assert found["route"].facts["metamusesd.tiers"] == ["fast"]
    assert SECRET not in repr(recorder.collector.spans)


async def test_a_retry_stays_in_its_trace(stage: Stage, recorder: Recorder) -> None:
    """Its worker dies: two attempts, the first one in error, under the one span of the job; each one had waited."""
    recorder.watch(stage)
    worker = await stage.worker()
    await stage.submit(TRACED)
    await worker.orders()
    await stage.die(worker)
    await answer(await stage.worker())
    await recorder.wait("chat m")
    spans = recorder.collector.spans
    attempts = [span for span in spans if span.name == "attempt"]
    assert [(span.facts["metamusesd.attempt"], span.error) for span in attempts] == [(1, "worker_died"), (2, "")]
    [whole] = [span for span in spans if span.name == "chat m"]
    assert {span.parent for span in attempts} == {whole.id} and {span.trace for span in spans} == {TRACE}
    waits = [span for span in spans if span.name == "wait in queue"]
    assert len(waits) == 2 and attempts[0].end_ns <= waits[1].start_ns <= waits[1].end_ns <= attempts[1].start_ns
    assert len({span.id for span in spans}) == len(spans)


async def test_another_dispatcher_goes_on_with_the_trace(recorder: Recorder) -> None:
    """A job without a producer's context, begun by one host and ended by another that never met it: one trace."""
    queue, begun = Fragile(), asyncio.Event()
    first = Stage(queue, owner="one:1")
    second: Stage | None = None
    try:
        recorder.watch(first)
        worker = await first.worker()
        id = await first.submit(json.dumps(ASKED).encode())
        await worker.orders()
        await first.dispatcher.drain(0.0)
        begun.set()
        second = Stage(queue, owner="two:1")
        recorder.watch(second)
        await answer(await second.worker())
        assert (await second.ended(id)).state == "done"
        await recorder.wait("chat m", "attempt", "attempt")
        attempts = [span for span in recorder.collector.spans if span.name == "attempt"]
        assert len(attempts) == 2 and {span.error for span in attempts} == {"drain", ""}
        assert len({span.trace for span in recorder.collector.spans}) == 1
        [whole] = [span for span in recorder.collector.spans if span.name == "chat m"]
        assert whole.parent == "" and {span.parent for span in attempts} == {whole.id}
    finally:
        await first.close()
        if second is not None:
            await second.close()


async def test_a_hit_has_no_attempt(recorder: Recorder) -> None:
    """The second of two equal jobs: routed, looked up, over; its span names the cache and the model of the answer."""
    stage = Stage(rules=Rules(enabled=True))
    try:
        worker = await stage.worker()
        await stage.submit(TRACED)
        await answer(worker)
        while stage.dispatcher.held:
            await asyncio.sleep(0)
        recorder.watch(stage)
        id = await stage.submit(TRACED)
        assert (await stage.ended(id)).from_cache
        found = await recorder.wait("chat m")
        assert set(found) == {"wait for routing", "route", "cache lookup", "chat m"}
        assert found["chat m"].facts["metamusesd.cache"] == "exact"
    finally:
        await stage.close()


async def test_a_refused_job_is_an_error(stage: Stage, recorder: Recorder) -> None:
    """A body that is no request has a trace of its own, which says why; its context counts if it can be read."""
    recorder.watch(stage)
    await stage.submit(b"{garbage")
    found = await recorder.wait("chat")
    assert (found["chat"].error, found["chat"].facts["error.type"]) == ("invalid_request", "invalid_request")
    assert found["chat"].facts["metamusesd.state"] == "failed" and found["chat"].parent == ""


async def test_a_job_of_which_a_worker_has_no_room_has_no_attempt_there(stage: Stage, recorder: Recorder) -> None:
    """It never began: such refusals come in bursts, and would hide the rest."""
    recorder.watch(stage)
    worker = await stage.worker()
    await stage.submit(TRACED)
    [order] = await worker.orders()
    await worker.send(Frame.EVENTS, [Refused(order.handle)])
    await answer(worker)
    await recorder.wait("chat m")
    assert [span.name for span in recorder.collector.spans].count("attempt") == 1


@pytest.mark.parametrize("flags", ["00", None])
async def test_what_is_not_sampled_is_not_sent(stage: Stage, recorder: Recorder, flags: str | None) -> None:
    """A producer's no is a no; with a share of 0 so is its silence. The next traced job is the first one to arrive."""
    recorder.watch(stage, share=0.0)
    worker = await stage.worker()
    body = ASKED | ({"traceparent": f"00-{TRACE}-{PARENT}-{flags}"} if flags else {})
    await stage.submit(json.dumps(body).encode())
    await answer(worker)
    traced = await stage.submit(TRACED)
    await answer(worker)
    await recorder.wait("chat m")
    assert {span.facts.get("metamusesd.job", traced) for span in recorder.collector.spans} == {traced}
    assert len(recorder.collector.spans) == 10


async def test_a_mistake_costs_spans_and_no_job(
    stage: Stage, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever the exporter does, the job is done, and the log names the mistake."""
    exporter = recorder.watch(stage)

    def broken(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(exporter, "put", broken)
    worker = await stage.worker()
    id = await stage.submit(TRACED)
    await answer(worker)
    assert (await stage.ended(id)).state == "done"
    while "RuntimeError: no" not in (said := capfd.readouterr().err):
        await asyncio.sleep(0)
    assert "a trace could not be made" in said


async def test_what_was_lost_is_told_seldom(
    stage: Stage, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once with the number and the reason; not again until there is more, and not at every beat."""
    exporter, counts = recorder.watch(stage), iter([0, 3, 5])
    monkeypatch.setattr(exporter, "lost", lambda: (next(counts), "refused"))
    for _ in range(3):
        stage.dispatcher.traces.tell()
    [line] = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert (line["event"], line["spans"], line["problem"]) == ("traces are lost", 3, "refused")


async def test_without_an_exporter_nothing_is_remembered(stage: Stage) -> None:
    """The default: no spans, no memory of jobs."""
    worker = await stage.worker()
    id = await stage.submit(TRACED)
    await answer(worker)
    assert (await stage.ended(id)).state == "done"
    assert not stage.dispatcher.traces._analysed and not stage.dispatcher.traces._ready_ns
