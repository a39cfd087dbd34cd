"""Positions: where a job stands, when it will start, and who is told so."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metamusesd.queues.base import (
    INGRESS,
    ClassLimits,
    Fault,
    Host,
    JobEvent,
    Limits,
    Position,
    Queue,
    Requeue,
    Service,
    Submission,
    Want,
)
from metamusesd.queues.memory import MemoryQueue
from metamusesd.queues.redis_queue import RedisQueue
from tests.contract.bench import LEASE_MS, OWNER, Bench, done, ids, routed

TIERS = ("fast", "medium", "heavy")
_runs = itertools.count()


async def wait_in(bench: Bench, *names: str, tiers: tuple[str, ...] = ("fast",), **fields: object) -> None:
    """Submit jobs and route them all to `tiers`."""
    await bench.submit(*names, **fields)
    moves = tuple(routed(job, *tiers) for job in await bench.claim())
    await bench.claim(tiers[0], count=0, routed=moves)


async def serve(bench: Bench, owner: str = OWNER, **services: Service) -> None:
    await bench.queue.announce(Host(owner, services), 60.0)


async def age(bench: Bench, *names: str, by_ms: int = 10_000) -> None:
    """Let the jobs have been submitted earlier."""
    for name in names:
        await grow_old(bench.queue, name, by_ms)


async def grow_old(queue: Queue, name: str, by_ms: int) -> None:
    if isinstance(queue, RedisQueue):
        await queue._door.ask("HINCRBY", f"{queue.prefix}:job:{name}", "submitted", -by_ms)
    else:
        queue._store.jobs[name].submitted_ms -= by_ms  # type: ignore[attr-defined]


async def push(bench: Bench, tier: str = "fast", most: int = 100) -> int:
    """Push as if a second had passed since the last time."""
    if bench.door:
        await bench.door.ask("DEL", f"{bench.door.prefix}:pushed:{tier}")
    else:
        bench.queue._store.pushed.clear()  # type: ignore[attr-defined]
    return await bench.queue.push(tier, most)


async def told(bench: Bench, name: str) -> list[dict[str, object]]:
    """The positions in the job's stream."""
    events: list[JobEvent] = await bench.queue.events(name)
    return [json.loads(event.data) for event in events if event.kind == "queued"]


# where


async def test_a_position_through_a_life(bench: Bench) -> None:
    """In ingress by rank, in its tier by rank, nowhere while it runs and when it has ended; None for no job."""
    await bench.submit("z", "a")
    assert await bench.queue.position("no") is None
    assert await bench.queue.position("a") == Position("a", "queued", INGRESS, 1)
    await bench.claim(count=1)
    assert await bench.queue.position("a") == Position("a", "queued", INGRESS, 0)
    (job,) = await bench.claim()
    assert await bench.queue.position("a") == Position("a", "running")
    await bench.claim("fast", count=0, routed=(routed(job, "fast"),))
    assert await bench.queue.position("a") == Position("a", "ready", "fast", 0)
    (job,) = await bench.claim("fast")
    await bench.queue.requeue([Requeue("a", job.token, "engine_busy", Fault.ERROR, delay_ms=60_000)])
    assert await bench.queue.position("a") == Position("a", "delayed")
    await bench.queue.cancel("a")
    assert await bench.queue.position("a") == Position("a", "cancelled")


async def test_a_higher_class_goes_first(bench: Bench) -> None:
    """Whoever comes later with a higher class pushes the others back."""
    await wait_in(bench, "a", "b", priority=1)
    await wait_in(bench, "c", priority=3)
    places = [await bench.queue.position(name) for name in "abc"]
    assert [place and place.ahead for place in places] == [1, 2, 0]


# when


async def test_two_hosts(bench: Bench) -> None:
    """Two hosts together: places and rates add up, factors count by how much each starts."""
    await serve(bench, "a:1", fast=Service("m", 1, 2.0, 1.0, 2.0))
    await serve(bench, "b:1", fast=Service("m", 2, 0.5, 2.0, 4.0), heavy=Service("h", 9, 9.0))
    await wait_in(bench, *(f"j{n:02}" for n in range(13)))
    assert await bench.queue.position("j12") == Position("j12", "ready", "fast", 12, 4800, 9600)
    assert await bench.queue.position("j03") == Position("j03", "ready", "fast", 3, 480, 960)
    assert await bench.queue.position("j02") == Position("j02", "ready", "fast", 2, 0, 0)


async def test_nobody_has_measured(bench: Bench) -> None:
    """Without a host, or with one that has not started a job yet, the time is unknown; a second host knows it."""
    await wait_in(bench, "a", "b")
    assert await bench.queue.position("b") == Position("b", "ready", "fast", 1)
    await serve(bench, "a:1", fast=Service("m", 0, 0.0), heavy=Service("m", 1, 1.0))
    assert await bench.queue.position("b") == Position("b", "ready", "fast", 1)
    await serve(bench, "b:1", fast=Service("m", 0, 4.0, 1.0, 1.5))
    assert await bench.queue.position("b") == Position("b", "ready", "fast", 1, 500, 750)


async def test_where_it_starts_soonest(bench: Bench) -> None:
    """Of several tiers the one with the shortest time counts, not the one with the fewest before it."""
    await wait_in(bench, "x", "y", tiers=("fast",))
    await wait_in(bench, "a", tiers=("heavy", "fast"))
    assert await bench.queue.position("a") == Position("a", "ready", "heavy", 0)
    await serve(bench, "a:1", fast=Service("m", 0, 3.0))
    assert await bench.queue.position("a") == Position("a", "ready", "fast", 2, 1000, 2000)
    await serve(bench, "b:1", heavy=Service("m", 0, 1.0, 1.0, 1.5))
    assert await bench.queue.position("a") == Position("a", "ready", "heavy", 0, 1000, 1500)
    await serve(bench, "b:1", heavy=Service("m", 0, 0.5))
    assert await bench.queue.position("a") == Position("a", "ready", "fast", 2, 1000, 2000)
    await bench.claim("fast", count=2)
    assert await bench.queue.position("a") == Position("a", "ready", "fast", 0, 333, 667)


# who is told


async def test_a_push_tells_only_what_changed(bench: Bench) -> None:
    """The first push tells everybody, the second nobody, and after a start all behind it."""
    await serve(bench, fast=Service("m", 0, 2.0))
    await wait_in(bench, "a", "b", "c")
    await age(bench, *"abc")
    assert (await push(bench), await push(bench)) == (3, 0)
    assert await told(bench, "b") == [{"queue": "fast", "ahead": 1, "start_p50_ms": 1000, "start_p90_ms": 2000}]
    await bench.claim("fast", count=1)
    assert (await push(bench), await push(bench)) == (2, 0)
    assert [place["ahead"] for place in await told(bench, "c")] == [2, 1]
    assert [place["ahead"] for place in await told(bench, "a")] == [0]


async def test_a_push_that_changes_nothing_writes_nothing(bench: Bench) -> None:
    """An empty queue costs no write, a queue that stands still only the turn of this second."""
    if bench.door is None:
        return
    dirty = "rdb_changes_since_last_save"

    async def changes() -> int:
        info = (await bench.door.ask("INFO", "persistence")).decode()  # type: ignore[union-attr]
        return next(int(line.partition(":")[2]) for line in info.splitlines() if line.startswith(dirty))

    before = await changes()
    assert await bench.queue.push("fast") == 0 and await changes() == before
    await wait_in(bench, *(f"j{n}" for n in range(20)))
    await age(bench, *(f"j{n}" for n in range(20)))
    assert await push(bench) == 20
    before = await changes()
    assert await push(bench) == 0
    assert await changes() <= before + 2  # the key of this second, deleted by the test and set again


async def test_one_push_a_second(bench: Bench) -> None:
    """Whoever comes second in a second writes nothing."""
    await wait_in(bench, "a")
    await age(bench, "a")
    assert await push(bench) == 1
    await wait_in(bench, "b")
    await age(bench, "b")
    assert await bench.queue.push("fast") == 0
    assert await push(bench) == 1


async def test_a_push_stops_at_most(bench: Bench) -> None:
    """Only the first jobs of a queue are told."""
    names = [f"j{n:02}" for n in range(30)]
    await wait_in(bench, *names)
    await age(bench, *names)
    assert await push(bench, most=10) == 10
    assert [len(await told(bench, name)) for name in names] == [1] * 10 + [0] * 20
    await bench.claim("fast", count=3)
    assert await push(bench, most=10) == 10
    assert [len(await told(bench, name)) for name in names] == [1] * 3 + [2] * 7 + [1] * 3 + [0] * 17


async def test_who_is_not_told(bench: Bench) -> None:
    """Not who wants no events, came just now, or is served sooner in another tier; unknown times are null."""
    await wait_in(bench, "mute", stream=False)
    await wait_in(bench, "fresh")
    await age(bench, "fresh", by_ms=-60_000)
    await wait_in(bench, "both", tiers=("fast", "heavy"))
    await wait_in(bench, "told")
    await age(bench, "mute", "both", "told")
    assert await push(bench) == 1
    assert await told(bench, "told") == [{"queue": "fast", "ahead": 3, "start_p50_ms": None, "start_p90_ms": None}]
    assert await push(bench, "heavy") == 1 and [place["queue"] for place in await told(bench, "both")] == ["heavy"]
    for name in ("mute", "fresh"):
        assert await told(bench, name) == []


async def test_mailboxes_are_told_too(bench: Bench) -> None:
    """A mailbox hears the position of each of its jobs, and the stream goes on as ever."""
    await wait_in(bench, "a", reply_to="box")
    await age(bench, "a")
    assert await push(bench) == 1
    (job,) = await bench.claim("fast")
    await bench.queue.settle([done(job)])
    kinds = ["queued", "started", "done"]
    assert [event.kind for event in await bench.queue.events("a")] == kinds
    assert [(event.id, event.kind) for event in await bench.queue.mail("box")] == [("a", kind) for kind in kinds]


# any queue

Waiting = list[tuple[int, tuple[str, ...] | None]]  # class and tiers of each job; None: still in ingress
tier_sets = st.permutations(TIERS).flatmap(lambda order: st.integers(1, 3).map(lambda n: tuple(order[:n])))
jobs = st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), tier_sets)), min_size=1, max_size=24)
services = st.builds(
    Service, st.just("m"), st.integers(0, 4), st.sampled_from([0.0, 0.001, 0.3, 2.0, 1000.0]),
    st.sampled_from([0.0, 0.7, 1.0, 1.3]), st.sampled_from([1.0, 2.0, 3.1]),
)  # fmt: skip
AGES_MS = 600_000  # between two jobs; with these waits no two are equally overdue, and none becomes aged meanwhile
max_waits = st.tuples(*(st.sampled_from([0, wait_ms]) for wait_ms in (1_260_000, 3_210_000, 5_160_000, 510_000)))
hosts = st.lists(st.dictionaries(st.sampled_from(TIERS), services), max_size=3)


async def build(queue: Queue, waiting: Waiting, living: list[dict[str, Service]]) -> None:
    """Jobs j0, j1, …, and these hosts."""
    for n, tiers in enumerate(living):
        await queue.announce(Host(f"h{n}:1", tiers), 60.0)
    todo = [(n, priority, tiers) for n, (priority, tiers) in enumerate(waiting)]
    for at, (n, priority, tiers) in enumerate(sorted(todo, key=lambda job: job[2] is None)):
        await queue.submit([Submission(f"j{n}", b"{}", "d", priority)])
        if tiers is not None:
            (job,) = await queue.claim(OWNER, f"r{n}", [Want(INGRESS, 1)], lease_ms=LEASE_MS)
            await queue.claim(OWNER, f"s{n}", [Want(tiers[0], 0)], [routed(job, *tiers)], lease_ms=LEASE_MS)
        await grow_old(queue, f"j{n}", (len(todo) - at) * AGES_MS)


async def claimed(queue: Queue, name: str) -> list[str]:
    """The order in which one dispatcher that wants one job at a time gets them all; they are given back after."""
    taken = []
    for n in itertools.count():
        found = await queue.claim(OWNER, f"{name}{n}", [Want(name, 1)], lease_ms=LEASE_MS)
        if not found:
            break
        taken += found
    await queue.requeue([Requeue(job.id, job.token, "looked") for job in taken])
    return ids(taken)


async def check_order(queue: Queue, count: int, aging: bool) -> list[Position | None]:
    """Every position, after proving that the jobs ahead are those that are claimed first; with aged jobs about, that
    they are no more than was said."""
    places = [await queue.position(f"j{n}") for n in range(count)]
    orders = {name: await claimed(queue, name) for name in (INGRESS, *TIERS)}
    for place in places:
        assert place
        first = orders[place.queue].index(place.id)
        assert first <= place.ahead if aging else first == place.ahead
    return places


async def compare(url: str, waiting: Waiting, living: list[dict[str, Service]], waits: tuple[int, ...]) -> None:
    low, normal, high, critical = (ClassLimits(max_wait_ms=wait_ms) for wait_ms in waits)
    limits = Limits(classes=(low, normal, high, critical))
    real, fake = RedisQueue(url, f"places{next(_runs)}", limits), MemoryQueue(limits)
    await real.open()
    try:
        for queue in (real, fake):
            await queue.configure()
            await build(queue, waiting, living)
        said = [sorted(await queue.hosts(), key=lambda host: host.owner) for queue in (real, fake)]
        assert said[0] == said[1]
        count, aging = len(waiting), any(waits)
        assert await check_order(real, count, aging) == await check_order(fake, count, aging)
    finally:
        await real.close()


@pytest.mark.parametrize("kind", ["redis6", "redis7"])
def test_positions_are_the_order_of_claims(kind: str, server_of) -> None:
    """Whatever waits in whatever tiers: the jobs ahead are those that are claimed first, and fake and scripts predict
    the same times. Where aged jobs have their turns, nobody is served later than was said."""
    url = server_of(kind).url

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(jobs, hosts, st.one_of(st.just((0, 0, 0, 0)), max_waits))
    def run(waiting: Waiting, living: list[dict[str, Service]], waits: tuple[int, ...]) -> None:
        asyncio.run(compare(url, waiting, living, waits))

    run()


async def test_the_turns_of_the_aged(bench: Bench) -> None:
    """Under a flood, an aged job of the lowest class knows that it need only wait for its turn; those that it passes
    know that it will pass."""
    limits = Limits(classes=(ClassLimits(max_wait_ms=600_000), ClassLimits(), ClassLimits(), ClassLimits()))
    bench.queue = await bench.again(limits)
    await bench.queue.configure()
    await wait_in(bench, "oldest", "old", "young", priority=0)
    flood = [f"f{n:02}" for n in range(60)]
    await wait_in(bench, *flood, priority=2)
    await age(bench, "oldest", by_ms=6_000_000)
    await age(bench, "old", by_ms=5_000_000)
    places = {name: await bench.queue.position(name) for name in (*flood, "oldest", "old", "young")}
    ahead = {name: place.ahead for name, place in places.items() if place}
    assert (ahead["oldest"], ahead["old"], ahead["young"]) == (7, 15, 62)
    assert [ahead[name] for name in flood] == [n + min(2, n // 7) for n in range(60)]
    order = [ids(await bench.claim("fast", count=1))[0] for _ in range(63)]
    assert {name: order.index(name) for name in ahead} == ahead


async def test_a_prediction_is_what_the_docstring_says(bench: Bench) -> None:
    """start_pX = factor_pX · (ahead + 1 - free) / start_hz, for each job of a queue."""
    one = Service("m", 2, 1.6, 0.5, 1.75)
    await serve(bench, fast=one)
    names = [f"j{n}" for n in range(8)]
    await wait_in(bench, *names)
    for ahead, name in enumerate(names):
        raw_ms = max(0, ahead + 1 - one.free) / one.start_hz * 1000
        p50_ms, p90_ms = int(raw_ms * one.factor_p50 + 0.5), int(raw_ms * one.factor_p90 + 0.5)
        assert await bench.queue.position(name) == Position(name, "ready", "fast", ahead, p50_ms, p90_ms)
