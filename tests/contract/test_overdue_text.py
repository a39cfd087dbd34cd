"""Text that comes in the moment after a deadline: the stream and the result of a job never say different things."""

from __future__ import annotations

from metamusesd.queues.base import Append
from tests.contract.bench import EXPIRED, OK, Bench, done, until


async def test_text_that_came_too_late_is_written_all_the_same(bench: Bench) -> None:
    """`expired` is told, and yet the text stands in the stream: its holder may still settle the job as done."""
    job = await bench.run(deadline_ms=250)
    assert await bench.queue.append([Append("a", job.token, 0, "one", 1)]) == [OK]

    async def told() -> bool:
        return await bench.queue.append([Append("a", job.token)]) == [EXPIRED]

    await until(told)
    assert await bench.queue.append([Append("a", job.token, 3, " two", 1)]) == [EXPIRED]
    assert await bench.queue.append([Append("a", job.token, 3, " two", 1)]) == [EXPIRED]
    assert await bench.queue.settle([done(job)]) == [OK]
    texts = [event.text for event in await bench.queue.events("a") if event.kind == "token"]
    assert texts == ["one", " two"]
