"""One idempotency key is one job: whatever its state, whoever asks, however many at once, until its record is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from metamusesd.errors import IdConflict
from metamusesd.queues.base import Fault, Limits, Receipt, Requeue, Submission
from metamusesd.queues.redis_queue import RedisQueue
from tests.contract.bench import Bench, done, routed, until
from tests.contract.redis_servers import RedisServer

SUBMITTERS = 50


async def test_a_digest_may_have_spaces(bench: Bench) -> None:
    """A digest is any text: the key finds its job, and a dead job takes its key with it."""
    bench.queue = await bench.again(Limits(max_crashes=1))
    first, again, other = (
        Submission(id, b"{}", digest, 1, idempotency_key="k")
        for id, digest in (("a", "sha1 12 ab"), ("b", "sha1 12 ab"), ("c", "sha1 12 cd"))
    )
    await bench.queue.submit([first])
    assert await bench.queue.submit([again]) == [Receipt("a", "queued", duplicate=True)]
    (conflict,) = await bench.queue.submit([other])
    assert isinstance(conflict, IdConflict)
    (job,) = await bench.claim()
    await bench.queue.requeue([Requeue("a", job.token, "worker_died", Fault.CRASH_ALONE)])
    assert await bench.queue.drop("a") == "dropped"
    assert await bench.queue.submit([other]) == [Receipt("c", "queued")]


async def queued(bench: Bench) -> None:
    await bench.submit("first", idempotency_key="k")


async def ready(bench: Bench) -> None:
    await queued(bench)
    (job,) = await bench.claim()
    await bench.claim("heavy", routed=(routed(job, "fast"),))


async def running(bench: Bench) -> None:
    await bench.run("first", idempotency_key="k")


async def delayed(bench: Bench) -> None:
    job = await bench.run("first", idempotency_key="k")
    await bench.queue.requeue([Requeue("first", job.token, "engine_failed", Fault.ERROR, delay_ms=60_000)])


async def dead(bench: Bench) -> None:
    bench.queue = await bench.again(Limits(max_crashes=1))
    job = await bench.run("first", idempotency_key="k")
    await bench.queue.requeue([Requeue("first", job.token, "worker_died", Fault.CRASH_ALONE)])


async def cancelled(bench: Bench) -> None:
    await queued(bench)
    await bench.queue.cancel("first")


def ended(state: str) -> Callable[[Bench], Awaitable[None]]:
    async def end(bench: Bench) -> None:
        job = await bench.run("first", idempotency_key="k")
        await bench.queue.settle([done(job, state)])

    end.__name__ = state
    return end


@pytest.mark.parametrize(
    "bring",
    [queued, ready, running, delayed, dead, cancelled, ended("done"), ended("failed"), ended("expired")],
    ids=lambda bring: str(bring.__name__),
)
async def test_the_first_job_answers_whatever_its_state(
    bench: Bench, bring: Callable[[Bench], Awaitable[None]]
) -> None:
    """The same key with the same body is the first job, in its present state; with another body it is a conflict."""
    await bring(bench)
    assert await bench.submit("second", idempotency_key="k") == [Receipt("first", bring.__name__, duplicate=True)]
    (refused,) = await bench.queue.submit([Submission("third", b"{1}", "other", 1, idempotency_key="k")])
    assert isinstance(refused, IdConflict) and refused.fields == {"id": "first", "by": "idempotency_key"}
    assert await bench.queue.view("second") is None and await bench.queue.view("third") is None


async def test_a_key_is_free_again_when_its_job_is_forgotten(bench: Bench) -> None:
    """After the lifetime of the first job's record the same key is a new job, with whatever body."""
    bench.queue = await bench.again(Limits(result_ttl_s=1))
    await cancelled(bench)

    async def forgotten() -> bool:
        return await bench.queue.view("first") is None

    await until(forgotten)
    (fresh,) = await bench.queue.submit([Submission("second", b"{2}", "other", 1, idempotency_key="k")])
    assert fresh == Receipt("second", "queued")


@pytest.mark.parametrize("kind", ["redis6", "redis7"])
async def test_fifty_submitters_at_once_are_one_job(kind: str, server_of: Callable[[str], RedisServer]) -> None:
    """Fifty connections submit the same key under ids of their own: one job, and all are told its id."""
    queues = [RedisQueue(server_of(kind).url, "idem-race") for _ in range(SUBMITTERS)]
    await asyncio.gather(*(queue.open() for queue in queues))
    try:
        for turn in range(5):
            jobs = [Submission(f"r{turn}-{n}", b"{}", "d", 1, idempotency_key=f"k{turn}") for n in range(SUBMITTERS)]
            calls = (queue.submit([job]) for queue, job in zip(queues, jobs, strict=True))
            answers = [answer for (answer,) in await asyncio.gather(*calls)]
            assert all(isinstance(answer, Receipt) for answer in answers)
            (winner,) = {answer.id for answer in answers if isinstance(answer, Receipt)}
            assert [answer.duplicate for answer in answers if isinstance(answer, Receipt)].count(False) == 1
            there = [id for id in (job.id for job in jobs) if await queues[0].view(id)]
            assert there == [winner]
            assert await queues[0].cancel(winner) == "cancelled"
    finally:
        await asyncio.gather(*(queue.close() for queue in queues))
