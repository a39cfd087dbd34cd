"""Anti-starvation: the share of the aged and the bound on their wait, for the scripts and the fake alike."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metamusesd.queues.base import INGRESS, ClassLimits, Limits, Queue, Submission, Want
from metamusesd.queues.memory import MemoryQueue
from metamusesd.queues.redis_queue import RedisQueue
from tests.contract.bench import LEASE_MS, Bench, done, ids

HOUR_MS = 3_600_000
AGING = Limits(classes=(ClassLimits(max_wait_ms=HOUR_MS),) * 3 + (ClassLimits(),))
_runs = itertools.count()


async def backdate(queue: Queue, id: str, age_ms: int) -> None:
    """The job has been waiting for so long."""
    view = await queue.view(id)
    assert view
    if isinstance(queue, RedisQueue):
        await queue._door.ask("HSET", f"{queue.prefix}:job:{id}", "submitted", view.submitted_ms - age_ms)
    else:
        queue._store.jobs[id].submitted_ms = view.submitted_ms - age_ms  # type: ignore[attr-defined]


async def flood(bench: Bench, first: int, count: int = 20) -> None:
    """Critical jobs that want to go first."""
    await bench.submit(*(f"c{n}" for n in range(first, first + count)), priority=3)


async def test_one_claim_in_eight_is_an_aged_jobs(bench: Bench) -> None:
    """Under a permanent flood of critical jobs every eighth claim, and no other, goes to an aged job."""
    bench.queue = await bench.again(AGING)
    await bench.submit(*(f"old{n}" for n in range(4)), priority=0)
    for n, hours in enumerate((9, 2, 7, 1.5)):
        await backdate(bench.queue, f"old{n}", round(hours * HOUR_MS))
    await flood(bench, 0, 60)
    taken = [claim for _ in range(16) for claim in await bench.claim(count=2)]
    assert [n for n, claim in enumerate(taken, 1) if claim.aged] == [8, 16, 24, 32]
    assert [claim.id for claim in taken if claim.aged] == ["old0", "old1", "old2", "old3"], "a class is served in order"
    assert all(claim.priority == 3 for claim in taken if not claim.aged)


async def test_the_most_overdue_class_goes_first(bench: Bench) -> None:
    """Among the heads of the classes the one that is longest past its own limit takes the turn."""
    classes = (ClassLimits(max_wait_ms=4 * HOUR_MS), ClassLimits(max_wait_ms=HOUR_MS), ClassLimits(), ClassLimits())
    bench.queue = await bench.again(Limits(classes=classes))
    await bench.submit("low", priority=0)
    await bench.submit("normal", priority=1)
    await bench.submit("high", priority=2)
    await flood(bench, 0, 40)
    for id, hours in (("low", 6), ("normal", 4), ("high", 100)):
        await backdate(bench.queue, id, hours * HOUR_MS)
    taken = [claim for _ in range(4) for claim in await bench.claim(count=8)]
    assert [claim.id for claim in taken if claim.aged] == ["normal", "low"]


async def test_a_claim_with_a_floor_takes_no_aged_job(bench: Bench) -> None:
    """Who has room for high classes only gets high classes only, and does not use up the turns."""
    bench.queue = await bench.again(AGING)
    await bench.submit("old", priority=0)
    await backdate(bench.queue, "old", 2 * HOUR_MS)
    await flood(bench, 0, 40)
    for _ in range(20):
        assert [claim.priority for claim in await bench.claim(count=1, floor=1)] == [3]
    assert "old" not in ids(await bench.claim(count=7)) and ids(await bench.claim(count=1)) == ["old"]


async def test_an_overdue_job_hides_no_aged_one(bench: Bench) -> None:
    """A job at the head of its class whose deadline has passed is ended, and the one behind it gets the turn."""
    bench.queue = await bench.again(AGING)
    await bench.submit("late", priority=0, deadline_ms=1)
    await bench.submit("old", priority=0)
    for id in ("late", "old"):
        await backdate(bench.queue, id, 2 * HOUR_MS)
    await flood(bench, 0, 40)
    await asyncio.sleep(0.002)
    assert [claim.id for claim in await bench.claim(count=8) if claim.aged] == ["old"]
    view = await bench.queue.view("late")
    assert view and view.state == "expired"


async def test_a_repeated_claim_says_aged_again(bench: Bench) -> None:
    """After a lost reply the same jobs come with the same words."""
    bench.queue = await bench.again(AGING)
    await bench.submit("old", priority=0)
    await backdate(bench.queue, "old", 2 * HOUR_MS)
    await flood(bench, 0)
    first = await bench.queue.claim("h:1", "n", [Want(INGRESS, 9)], lease_ms=LEASE_MS)
    assert [claim.aged for claim in first].count(True) == 1
    assert await bench.queue.claim("h:1", "n", [Want(INGRESS, 9)], lease_ms=LEASE_MS) == first


async def test_an_aged_job_that_is_not_contended_is_a_job_like_any_other(bench: Bench) -> None:
    """Who takes all that waits needs no turns: nothing is marked, nothing is kept."""
    bench.queue = await bench.again(AGING)
    await bench.submit("old", priority=0)
    await backdate(bench.queue, "old", 2 * HOUR_MS)
    (claim,) = await bench.claim(count=5)
    assert not claim.aged
    await bench.queue.settle([done(claim)])
    if bench.door:
        assert await bench.door.ask("EXISTS", f"{bench.door.prefix}:turns") == 0


async def check_the_bound(queue: Queue, olds: list[tuple[int, int]], counts: list[int]) -> None:
    """Claims of `counts` jobs each, with a flood behind them; `olds` are (class, hours) of jobs that are aged."""
    submit, serial = queue.submit, itertools.count()
    overdue: dict[str, int] = {}
    for n, (priority, hours) in enumerate(sorted(olds, key=lambda old: -old[1])):
        await submit([Submission(f"old{n}", b"{}", "d", priority)])
        await backdate(queue, f"old{n}", (hours + 1) * HOUR_MS - n)  # no two alike
        overdue[f"old{n}"] = n + 1  # rank: how many are at least as overdue
    claims, last_aged = 0, -8
    for nonce, count in enumerate(counts * 50):
        await submit([Submission(f"c{next(serial)}", b"{}", "d", 3) for _ in range(count + 1)])
        for claim in await queue.claim("h:1", f"n{nonce}", [Want(INGRESS, count)], lease_ms=LEASE_MS):
            claims += 1
            if claim.id in overdue:
                assert claim.aged and claims - last_aged >= 8, "at most one claim in eight"
                assert claims <= 8 * overdue.pop(claim.id), "after at most 8·k claims"
                last_aged = claims
        if not overdue:
            return
    assert not overdue


@pytest.mark.parametrize("kind", ["redis7", "memory"])
def test_the_bound_on_an_aged_jobs_wait(kind: str, server_of) -> None:
    """However claims are sized, an aged job is claimed after at most 8·k claims, k of them at least as overdue, and of
    eight claims in a row at most one is an aged job's."""
    url = "" if kind == "memory" else server_of(kind).url

    async def run(olds: list[tuple[int, int]], counts: list[int]) -> None:
        queue = RedisQueue(url, f"aging{next(_runs)}", AGING) if url else MemoryQueue(AGING)
        await queue.open()
        await check_the_bound(queue, olds, counts)
        await queue.close()

    olds = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 50)), min_size=1, max_size=6)
    counts = st.lists(st.integers(1, 20), min_size=1, max_size=4)

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(olds, counts)
    def prove(olds: list[tuple[int, int]], counts: list[int]) -> None:
        asyncio.run(run(olds, counts))

    prove()
