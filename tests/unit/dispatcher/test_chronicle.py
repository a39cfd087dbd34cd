"""What the log says of jobs: one line at the end of each, one for everything unusual, and never what was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from metamusesd import log
from metamusesd.dispatcher.caching import Rules
from metamusesd.errors import EngineFailed
from metamusesd.queues.base import Reaped
from metamusesd.wire import Finished, Frame, Refused, Token
from tests.unit.dispatcher.stage import PlayedWorker, Stage

Told = Callable[..., Awaitable[dict[str, Any]]]
SECRET = "xyzzy-secret"
BODY = json.dumps({"user_query": SECRET, "tier": "fast"}).encode()


@pytest.fixture
def everything() -> list[dict[str, Any]]:
    return []


@pytest.fixture
async def told(capfd: pytest.CaptureFixture[str], everything: list[dict[str, Any]]) -> AsyncIterator[Told]:
    """Waits for the first line of this event about this job; whatever was logged gathers in `everything`."""
    log.configure("debug", "json")

    async def told(event: str, job: str) -> dict[str, Any]:
        async with asyncio.timeout(5):
            while True:
                everything.extend(map(json.loads, capfd.readouterr().err.splitlines()))
                for line in everything:
                    if (line["event"], line.get("job")) == (event, job):
                        return line
                await asyncio.sleep(0)

    yield told
    log.configure("info", "json")


async def order(stage: Stage, worker: PlayedWorker, **more: Any) -> tuple[str, int]:
    """A job that the worker has: its id and handle."""
    id = await stage.submit(BODY, tenant="acme", **more)
    [order] = await worker.orders()
    return id, order.handle


async def test_a_job_has_one_line_at_its_end(stage: Stage, told: Told, everything: list[dict[str, Any]]) -> None:
    """Who, where, how much and how long; not a word about claims, tokens or the prompt."""
    worker = await stage.worker()
    id, handle = await order(stage, worker)
    await worker.send(
        Frame.EVENTS, [Token(handle, SECRET, 1, True), Finished(handle, "stop", None, 9, 1, prefill_ms=1, decode_ms=1)]
    )
    line = await told("job ended", id)
    known = ("level", "tenant", "class", "attempt", "tier", "worker", "state", "tokens", "prompt_tokens", "reason")
    assert [line[name] for name in known] == ["info", "acme", "normal", 1, "fast", "fast-0", "done", 1, 9, "stop"]
    assert line["total_ms"] >= line["ttft_ms"] >= line["queue_ms"] >= 0 and "cache" not in line
    assert [each["event"] for each in everything if each.get("job")] == ["job ended"]
    assert SECRET not in json.dumps(everything)


async def test_prompts_are_told_where_the_configuration_wants_them(stage: Stage, told: Told) -> None:
    """With `[log] prompts` the line has the beginning of both, cut at 200 characters."""
    log.configure("info", "json", prompts=True)
    worker = await stage.worker()
    id, handle = await order(stage, worker)
    await worker.send(Frame.EVENTS, [Token(handle, "a" * 500, 1, True), Finished(handle, "length", None, 9, 1)])
    line = await told("job ended", id)
    assert (line["prompt"], line["answer"]) == (SECRET, "a" * 200)


async def test_a_refused_job_says_which_field(stage: Stage, told: Told) -> None:
    """Its end is its refusal: code and field, not its text."""
    id = await stage.submit(json.dumps({"user_query": SECRET, "params": {"top_p": 7}}).encode())
    line = await told("job refused", id)
    assert (line["level"], line["state"], line["reason"], line["field"]) == (
        "info", "failed", "invalid_request", "params.top_p",
    )  # fmt: skip
    assert SECRET not in json.dumps(line)


async def test_tries_failures_and_the_end_are_told_in_order(
    stage: Stage, told: Told, everything: list[dict[str, Any]]
) -> None:
    """A retryable error is a warning each time, and so is the end that no retry is left for."""
    worker = await stage.worker()
    id = await stage.submit(BODY)
    for attempt in (1, 2, 3):
        [again] = await worker.orders()
        assert again.attempt == attempt
        await worker.send(Frame.EVENTS, [Finished(again.handle, error=EngineFailed("no").to_dict())])
    end = await told("job ended", id)
    assert (end["level"], end["state"], end["reason"], end["attempt"]) == ("warning", "failed", "engine_failed", 3)
    tries = [(line["level"], line["retries"]) for line in everything if line["event"] == "job is tried again"]
    assert tries == [("warning", 1), ("warning", 2)]


async def test_a_crash_and_the_quarantine_are_told(stage: Stage, told: Told) -> None:
    """Whose worker died says so, with the count; the last crash, alone, is an error of its own."""
    worker = await stage.worker()
    id, _ = await order(stage, worker)
    for crashes in (1, 2, 3):
        await stage.die(worker)
        if crashes < 3:
            worker = await stage.worker()
            await worker.orders()
    line = await told("job is quarantined", id)
    assert (line["level"], line["state"], line["tenant"], line["attempt"]) == ("error", "dead", "acme", 3)
    lost = await told("job lost its worker", id)
    assert (lost["level"], lost["fault"], lost["crashes"], lost["worker"]) == ("warning", "crash_alone", 1, "fast-0")


async def test_a_cancelled_job_has_its_line(stage: Stage, told: Told) -> None:
    """Cancelled while it ran: that was its end, and the line says how far it had come."""
    worker = await stage.worker()
    id, handle = await order(stage, worker)
    await worker.send(Frame.EVENTS, [Token(handle, "a", 3, True)])
    while not await stage.texts(id):
        await asyncio.sleep(0)
    await stage.queue.cancel(id)
    stage.dispatcher.ask(0)
    line = await told("job ended", id)
    assert (line["state"], line["tokens"], line["worker"]) == ("cancelled", 3, "fast-0")


async def test_a_refusal_of_a_worker_is_no_news(stage: Stage, told: Told) -> None:
    """They come in bursts and cost nothing: level debug."""
    worker = await stage.worker()
    await order(stage, worker)
    id, handle = await order(stage, worker)
    await worker.send(Frame.EVENTS, [Refused(handle)])
    assert (await told("job given back", id))["level"] == "debug"


async def test_a_hit_says_which_cache(told: Told) -> None:
    """The second of two equal jobs has no worker in its line, but the cache that knew it."""
    stage = Stage(rules=Rules(enabled=True))
    try:
        worker = await stage.worker()
        id, handle = await order(stage, worker)
        await worker.send(Frame.EVENTS, [Token(handle, "Paris.", 2, True), Finished(handle, "stop", None, 9, 2)])
        assert "cache" not in await told("job ended", id)
        line = await told("job ended", await stage.submit(BODY, tenant="acme"))
        assert (line["cache"], line["state"], line["tier"], "worker" in line) == ("exact", "done", "fast", False)
    finally:
        await stage.close()


async def test_what_a_sweep_ends_is_told_by_job(stage: Stage, told: Told) -> None:
    """Jobs that nobody held: expired, too long in a queue, their lease over, their tier gone."""
    stage.dispatcher.ledger.reaped(Reaped(expired=("a",), timed_out=("b",), requeued=("c",), rerouted=("d",)))
    assert (await told("job ended", "a"))["state"] == "expired"
    assert (await told("job waited too long", "b"))["reason"] == "queue_timeout"
    assert (await told("job given back", "c"))["reason"] == "lease_expired"
    assert (await told("job given back", "d"))["reason"] == "stranded"
