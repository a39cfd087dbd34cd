"""Who is in the queue now: every job that has not ended, by age, with where it stands."""

from __future__ import annotations

from metamusesd.queues.base import Fault, Requeue
from metamusesd.queues.census import LiveJob
from tests.contract.bench import OWNER, Bench


async def by_id(bench: Bench) -> dict[str, LiveJob]:
    _, jobs = await bench.queue.live(0, 100)
    return {job.id: job for job in jobs}


async def test_jobs_come_by_age_whatever_their_class(bench: Bench) -> None:
    """The oldest first, so that the one that waits longest is seen."""
    await bench.submit("a", priority=0, tenant="blue")
    await bench.submit("b", priority=3)
    await bench.submit("c")
    now_ms, jobs = await bench.queue.live(0, 100)
    assert [(job.id, job.state, job.priority) for job in jobs] == [("a", "queued", 0), ("b", "queued", 3),
                                                                  ("c", "queued", 1)]  # fmt: skip
    assert jobs[0].tenant == "blue" and 0 <= now_ms - jobs[0].submitted_ms < 60_000


async def test_pages_meet_without_gap_or_double(bench: Bench) -> None:
    """`skip` and `count` cut the same list; `living` is its length."""
    ids = [f"j{number}" for number in range(7)]
    await bench.submit(*ids)
    pages = [[job.id for job in (await bench.queue.live(skip, 3))[1]] for skip in (0, 3, 6, 9)]
    assert [id for page in pages for id in page] == ids and pages[-1] == []
    assert await bench.queue.living() == 7


async def test_a_running_job_tells_who_holds_it_and_since_when(bench: Bench) -> None:
    """Its tier, its dispatcher, its claim; given back it waits again, with what that cost it."""
    claim = await bench.run("a", ("fast", "heavy"))
    job = (await by_id(bench))["a"]
    assert (job.state, job.queue, job.tiers, job.owner) == ("running", "fast", ("fast", "heavy"), OWNER)
    assert job.claimed_ms >= job.submitted_ms > 0
    await bench.queue.requeue([Requeue("a", claim.token, "worker_died", Fault.CRASH)])
    job = (await by_id(bench))["a"]
    assert (job.state, job.queue, job.owner, job.claimed_ms) == ("ready", "", "", 0)
    assert (job.attempt, job.crashes) == (2, 1)


async def test_what_has_ended_is_not_there(bench: Bench) -> None:
    """A cancelled job is no live one, and no record of it is needed to see the others."""
    await bench.submit("a", "b")
    await bench.queue.cancel("a")
    assert list(await by_id(bench)) == ["b"] and await bench.queue.living() == 1


async def test_an_empty_queue_has_nobody(bench: Bench) -> None:
    """Nobody, and no error."""
    assert (await bench.queue.live(0, 10))[1] == [] and await bench.queue.living() == 0
