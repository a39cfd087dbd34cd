"""Class bounds and time-outs, stranded tiers, the drain, and counters that heal: what reap and configure promise."""

from __future__ import annotations

import pytest

from metamusesd.errors import QueueFull
from metamusesd.job import decode_result
from metamusesd.queues.base import INGRESS, ClassLimits, Fault, Host, Limits, Requeue, Service, Submission
from tests.contract.bench import LEASE_MS, OK, OWNER, Bench, done, ids, routed, until
from tests.contract.test_queue_aging import HOUR_MS, backdate

NONE = ClassLimits()


def only(priority: int, bounds: ClassLimits, **more: int) -> Limits:
    """Limits with one class that has some."""
    classes = [NONE] * 4
    classes[priority] = bounds
    return Limits(classes=(classes[0], classes[1], classes[2], classes[3]), **more)


# bounds


async def test_a_class_has_a_bound_of_its_own(bench: Bench) -> None:
    """Unfinished jobs of a class are counted wherever they stand; other classes are not concerned."""
    bench.queue = await bench.again(only(0, ClassLimits(max_queue_size=2)))
    await bench.submit("a", "b", priority=0)
    (a, *_) = await bench.claim(count=1)
    (full,) = await bench.submit("c", priority=0)
    assert isinstance(full, QueueFull) and full.fields["bound"] == "class_jobs" and full.retry_after_s == 1.0
    assert not isinstance((await bench.submit("d", priority=1))[0], QueueFull)
    await bench.queue.settle([done(a)])
    assert not isinstance((await bench.submit("c", priority=0))[0], QueueFull)


async def test_producers_are_held_to_the_published_limits(bench: Bench) -> None:
    """A producer that believes in other limits is bound all the same; without `configure` the defaults hold."""
    await bench.again(Limits(max_jobs=1))
    if bench.door:
        bench.queue._limits = Limits(max_jobs=100)  # type: ignore[attr-defined]
        answers = await bench.submit("a", "b")
        assert [isinstance(answer, QueueFull) for answer in answers] == [False, True]


async def test_when_to_come_again(bench: Bench) -> None:
    """A refusal says when a hundredth of the bound will have started, at the rate of all live hosts."""
    bench.queue = await bench.again(Limits(max_jobs=2))
    for owner, hz in (("a:1", 0.3), ("b:1", 0.1)):
        await bench.queue.announce(Host(owner, {"fast": Service("m", 1, hz), "heavy": Service("m")}), 60)
    await bench.queue.reap(OWNER)
    *_, full = await bench.submit("a", "b", "c")
    assert isinstance(full, QueueFull) and full.retry_after_s == 2.5
    await bench.queue.announce(Host("a:1", {"fast": Service("m", 1, 1000.0)}), 60)
    await bench.queue.reap(OWNER)
    (full,) = await bench.submit("d")
    assert isinstance(full, QueueFull) and full.retry_after_s == 0.1


# class time-outs


@pytest.mark.parametrize("where", [INGRESS, "fast"])
async def test_a_class_can_refuse_what_waits_too_long(bench: Bench, where: str) -> None:
    """A job that never started ends as failed(queue_timeout), with when to come again; who came later waits on."""
    bench.queue = await bench.again(only(1, ClassLimits(timeout_ms=HOUR_MS)))
    await bench.submit("a", "b", reply_to="box")
    await bench.submit("low", priority=0)
    if where == "fast":
        await bench.claim("none", routed=tuple(routed(job, "fast", "heavy") for job in await bench.claim()))
    for id in ("a", "low"):
        await backdate(bench.queue, id, HOUR_MS)
    reaped = await bench.queue.reap(OWNER, tiers=["fast"])
    assert reaped.timed_out == ("a",) and not reaped.more
    result = decode_result(await bench.queue.result("a") or b"")
    assert result.state == "failed" and result.error
    assert (result.error["code"], result.error["retryable"], result.error["retry_after_s"]) == (
        "queue_timeout",
        True,
        1,
    )
    assert [(event.kind, event.id) for event in await bench.queue.mail("box")][-1] == ("failed", "a")
    assert [ids(await bench.claim(queue)) for queue in (where, "heavy")] == [["b", "low"], []]


async def test_a_class_can_put_what_waits_too_long_behind_the_others(bench: Bench) -> None:
    """With `delay` it goes on as class low, by its number, and is counted there."""
    classes = (ClassLimits(max_queue_size=3), NONE, ClassLimits(timeout_ms=HOUR_MS, timeout_action="delay"), NONE)
    bench.queue = await bench.again(Limits(classes=classes))
    await bench.submit("low1", priority=0)
    await bench.submit("a", "b", priority=2)
    await bench.submit("low2", priority=0)
    await bench.submit("normal", priority=1)
    await backdate(bench.queue, "a", HOUR_MS)
    assert (await bench.queue.reap(OWNER)).timed_out == ("a",)
    assert (await bench.queue.reap(OWNER)).timed_out == ()
    assert isinstance((await bench.submit("low3", priority=0))[0], QueueFull)
    (depth,) = await bench.queue.depths([INGRESS])
    assert depth.by_class == (3, 1, 1, 0)
    claims = await bench.claim()
    assert ids(claims) == ["b", "normal", "low1", "a", "low2"]
    assert [claim.priority for claim in claims if claim.id == "a"] == [0]


async def test_a_job_that_started_has_no_class_time_out(bench: Bench) -> None:
    """What was given back by a worker, burnt or not, and what runs, is not timed out."""
    bench.queue = await bench.again(only(1, ClassLimits(timeout_ms=HOUR_MS)))
    for id, fault in (("a", Fault.NONE), ("b", Fault.KILLED), ("c", None), ("d", Fault.NONE)):
        await bench.submit(id)
        moves = tuple(routed(claim, "fast") for claim in await bench.claim())
        (job,) = [claim for claim in await bench.claim("fast", routed=moves) if claim.id == id]
        await backdate(bench.queue, id, 2 * HOUR_MS)
        if fault:
            await bench.queue.requeue([Requeue(id, job.token, "x", fault, reroute=id == "d")])
    assert (await bench.queue.reap(OWNER, tiers=["fast"])).timed_out == ()


# stranded tiers


async def test_jobs_of_a_tier_that_nobody_serves_are_routed_again(bench: Bench) -> None:
    """After strand_ms without a live host for any of their tiers they stand in ingress; who has another tier stays."""
    bench.queue = await bench.again(Limits(strand_ms=1))
    await bench.queue.announce(Host(OWNER, {"fast": Service("m")}), 60)
    await bench.submit("a", "b", "c", priority=2)
    a, b, c = await bench.claim()
    await bench.claim("none", routed=(routed(a, "heavy", "code"), routed(b, "heavy", "fast"), routed(c, "fast")))
    assert (await bench.queue.reap(OWNER, tiers=["fast", "heavy"])).rerouted == ()

    async def rerouted() -> tuple[str, ...]:
        return (await bench.queue.reap(OWNER, tiers=["fast", "heavy"])).rerouted

    assert await until(rerouted) == ("a",)
    (again,) = await bench.claim()
    assert (again.id, again.route, again.attempt) == ("a", b"", 1)
    assert await bench.claim("heavy") == await bench.claim("code") == []
    assert ids(await bench.claim("fast")) == ["b", "c"]


async def test_a_served_tier_strands_nobody(bench: Bench) -> None:
    """As long as one live host serves the tier its jobs stay."""
    bench.queue = await bench.again(Limits(strand_ms=1))
    await bench.submit("a")
    await bench.claim("none", routed=(routed((await bench.claim())[0], "heavy"),))
    await bench.queue.reap(OWNER, tiers=["heavy"])
    await bench.queue.announce(Host("other:1", {"heavy": Service("m")}), 60)
    for _ in range(3):
        assert (await bench.queue.reap(OWNER, tiers=["heavy"])).rerouted == ()
    assert ids(await bench.claim("heavy")) == ["a"]


async def test_a_tier_whose_workers_are_gone_strands_its_jobs(bench: Bench) -> None:
    """A host that has the tier in its configuration and no worker for it does not serve it."""
    bench.queue = await bench.again(Limits(strand_ms=1))
    await bench.queue.announce(Host("other:1", {"heavy": Service("m", workers=0)}), 60)
    assert (await bench.queue.hosts())[0].tiers["heavy"].workers == 0
    await bench.submit("a")
    await bench.claim("none", routed=(routed((await bench.claim())[0], "heavy"),))

    async def rerouted() -> tuple[str, ...]:
        return (await bench.queue.reap(OWNER, tiers=["heavy"])).rerouted

    assert await until(rerouted) == ("a",)


# evidence


async def test_evidence_is_kept_and_bounded(bench: Bench) -> None:
    """The last eight pieces stay with the job, one a line, and no more than sixteen kibibytes."""
    job = await bench.run()
    for n in range(10):
        piece = b'{"crash":\n%d}' % n
        await bench.queue.requeue([Requeue("a", job.token, "segfault", Fault.CRASH, evidence=piece)])
        (job,) = await bench.claim("fast")
    view = await bench.queue.view("a")
    assert view and view.evidence == tuple(b'{"crash": %d}' % n for n in range(2, 10))
    await bench.queue.requeue([Requeue("a", job.token, "x", evidence=b'"%s"' % (b"x" * 16_000))])
    view = await bench.queue.view("a")
    assert view and sum(map(len, view.evidence)) <= 16_384 and view.evidence[-1].startswith(b'"xxx')


async def test_retries_are_counted(bench: Bench) -> None:
    """A retryable error costs an attempt and a retry; being killed from outside an attempt only."""
    job = await bench.run()
    for fault, cost in ((Fault.ERROR, (2, 1, 0)), (Fault.KILLED, (3, 1, 0)), (Fault.NONE, (3, 1, 0)),
                        (Fault.CRASH, (4, 1, 1)), (Fault.ERROR, (5, 2, 1))):  # fmt: skip
        assert await bench.queue.requeue([Requeue("a", job.token, "x", fault)]) == [OK]
        (job,) = await bench.claim("fast")
        assert (job.attempt, job.retries, job.crashes) == cost


# counters


async def counters(bench: Bench) -> dict[str, int]:
    assert bench.door
    flat = await bench.door.ask("HGETALL", f"{bench.door.prefix}:counters")
    return {name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}


async def mixture(bench: Bench, count: int) -> dict[str, int]:
    """Jobs of several classes and tenants, some of them ended; the right counters."""
    jobs = [Submission(f"j{n}", b"x" * (n + 2), "d", n % 4, f"t{n % 3}") for n in range(count)]
    await bench.queue.submit(jobs)
    for job in jobs[::5]:
        await bench.queue.cancel(job.id)
    live = [job for n, job in enumerate(jobs) if n % 5]
    right = {"jobs": len(live), "bytes": sum(len(job.body) for job in live)}
    for job in live:
        for name in (f"jobs:{job.tenant}", f"jobs:class:{job.priority}"):
            right[name] = right.get(name, 0) + 1
    return right


async def test_counters_heal(bench: Bench) -> None:
    """Counters that somebody broke are right again after one sweep, though jobs are live all the time."""
    if bench.door is None:
        return
    right, prefix = await mixture(bench, 50), bench.door.prefix
    assert await counters(bench) == right
    await bench.door.ask("HSET", f"{prefix}:counters", "jobs", 99999, "jobs:t1", 7, "jobs:nobody", 3, "bytes", -5)
    await bench.door.ask("ZADD", f"{prefix}:live", 17, "a ghost")
    await bench.queue.reap(OWNER)
    assert await counters(bench) == right
    assert await bench.door.ask("ZCARD", f"{prefix}:live") == right["jobs"]
    await bench.door.ask("HSET", f"{prefix}:counters", "jobs", 99999)
    await bench.queue.reap(OWNER)
    assert (await counters(bench))["jobs"] == 99999, "not more often than every half minute"
    assert 0 < await bench.door.ask("PTTL", f"{prefix}:recounted") <= 30_000
    await bench.door.ask("DEL", f"{prefix}:recounted")
    await bench.queue.reap(OWNER)
    assert await counters(bench) == right


async def test_many_jobs_are_recounted_piece_by_piece(bench: Bench) -> None:
    """Between the calls jobs end, come, change their class and come back from the dead, and the sum is exact."""
    if bench.door is None:
        return
    bench.queue = await bench.again(Limits(max_crashes=1, classes=only(3, ClassLimits(timeout_ms=1, timeout_action="delay")).classes))  # fmt: skip  # noqa: E501
    right, door = await mixture(bench, 60), bench.door
    await door.ask("HSET", f"{door.prefix}:counters", "jobs", 5, "jobs:class:3", -100, "jobs:t2", 1000)
    count = lambda: door.script("recount", 30_000, 10)  # noqa: E731
    assert await count() == 1
    await bench.queue.cancel("j1")  # passed already
    await bench.queue.cancel("j59")  # not yet
    (job,) = await bench.claim(count=1, floor=3)
    assert await bench.queue.requeue([Requeue(job.id, job.token, "x", Fault.CRASH_ALONE)]) == [OK]
    assert await count() == 1
    assert await bench.queue.revive(job.id) == "queued"
    await bench.submit("new", priority=2, tenant="t1")
    demoted = [id for id in (await bench.queue.reap(OWNER)).timed_out if id != job.id]
    while await count() == 1:
        pass
    right["jobs"] -= 1  # two ended, one came
    right["jobs:t1"] += 0  # j1 went, new came
    right["jobs:t2"] -= 1  # j59
    right["bytes"] += 2 - 3 - 61
    right["jobs:class:1"] -= 1
    right["jobs:class:2"] += 1
    right["jobs:class:3"] -= 1 + len(demoted)
    right["jobs:class:0"] += len(demoted)
    found = await counters(bench)
    assert demoted and {name: found.get(name, 0) for name in right} == {name: max(n, 0) for name, n in right.items()}
    assert await bench.claim("none", lease_ms=LEASE_MS) == []
