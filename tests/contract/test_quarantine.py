"""The dead: they are listed, live again, or are forgotten, and a call made twice does nothing twice."""

from __future__ import annotations

from metamusesd.queues.base import INGRESS, Append, Fault, JobView, Limits, Requeue
from tests.contract.bench import LOST, OK, Bench, done, ids, routed

EVIDENCE = b'{"signal":"SIGSEGV"}'


async def quarantine(bench: Bench, id: str = "a", **fields: object) -> None:
    """Put one job through a crash that makes it dead, after it has said `hi`."""
    bench.queue = bench.queue if await bench.queue.dead() else await bench.again(Limits(max_crashes=1))
    job = await bench.run(id, **fields)
    await bench.queue.append([Append(id, job.token, 0, "hi", 1)])
    back = Requeue(id, job.token, "worker_died", Fault.CRASH_ALONE, evidence=EVIDENCE)
    assert await bench.queue.requeue([back]) == [OK]


async def view(bench: Bench, id: str = "a") -> JobView:
    found = await bench.queue.view(id)
    assert found
    return found


async def kinds(bench: Bench, id: str = "a") -> list[str]:
    return [event.kind for event in await bench.queue.events(id)]


async def test_the_dead_are_listed(bench: Bench) -> None:
    """The newest first, with why and by what evidence; the body is in the job's own view."""
    assert await bench.queue.dead() == []
    for id in ("b", "a", "c"):
        await quarantine(bench, id)
    listed = await bench.queue.dead()
    assert sorted(job.id for job in listed) == ["a", "b", "c"]
    assert [job.ended_ms for job in listed] == sorted((job.ended_ms for job in listed), reverse=True)
    assert [job.id for job in await bench.queue.dead(1)] == [listed[0].id]
    job = listed[0]
    assert (job.state, job.crashes, job.reason, job.evidence, job.body) == ("dead", 1, "worker_died", (EVIDENCE,), b"")
    seen = await view(bench, job.id)
    assert seen.body == b"{}" and seen.ended_ms >= seen.submitted_ms > 0


async def test_a_view_says_why_a_job_waits(bench: Bench) -> None:
    """Retries and the reason of the last give-back are in the view."""
    job = await bench.run()
    await bench.queue.requeue([Requeue("a", job.token, "engine_busy", Fault.ERROR)])
    seen = await view(bench)
    assert (seen.state, seen.retries, seen.reason, seen.attempt, seen.ended_ms) == ("ready", 1, "engine_busy", 2, 0)


async def test_another_life(bench: Bench) -> None:
    """A revived job is as new, stands in its old place, and is served to its end."""
    await quarantine(bench, priority=2, deadline_ms=60_000)
    await bench.submit("low", priority=1)
    await bench.submit("later", priority=2)
    assert await bench.queue.revive("a") == "queued"
    seen = await view(bench)
    assert (seen.state, seen.crashes, seen.retries, seen.attempt, seen.reason) == ("queued", 0, 0, 2, "revived")
    assert (seen.ended_ms, seen.evidence, seen.route) == (0, (EVIDENCE,), b"")
    assert await bench.queue.dead() == [] and await bench.queue.result("a") is None
    first, *others = await bench.claim()
    assert (first.id, ids(others)) == ("a", ["later", "low"])
    assert (first.deadline_ms, first.body, first.attempt) == (0, b"{}", 2)
    (running,) = await bench.claim("fast", routed=(routed(first, "fast"),))
    assert await bench.queue.settle([done(running)]) == [OK]
    assert await kinds(bench) == ["started", "token", "restarted", "started", "done"]
    assert await bench.queue.result("a") == b'{"request_id":"a"}'


async def test_a_revived_job_wakes_a_dispatcher(bench: Bench) -> None:
    """Whoever waits for work hears of it."""
    await quarantine(bench)
    await bench.claim()
    assert await bench.queue.revive("a") == "queued"
    assert await bench.queue.wait([INGRESS], 30.0)


async def test_a_revived_job_is_counted_and_lives_for_ever(bench: Bench) -> None:
    """It counts among the live ones again, nothing of it expires, and its idempotency key answers for it."""
    await quarantine(bench, idempotency_key="k", stream=True)
    await bench.queue.revive("a")
    (answer,) = await bench.submit("b", idempotency_key="k")
    assert (answer.id, answer.duplicate) == ("a", True)  # type: ignore[union-attr]
    if bench.door:
        p = bench.door.prefix
        assert await bench.door.ask("HGET", f"{p}:counters", "jobs") == b"1"
        for key in (f"{p}:job:a", f"{p}:events:a", f"{p}:idem:default:k"):
            assert await bench.door.ask("PTTL", key) == -1
    assert await bench.queue.cancel("a") == "cancelled"
    if bench.door:
        assert await bench.door.ask("EXISTS", f"{bench.door.prefix}:counters") == 0


async def test_an_idempotency_key_that_went_to_another_stays_there(bench: Bench) -> None:
    """A revived job does not take its lost key back from the job that has it now, nor lets it expire."""
    await quarantine(bench, idempotency_key="k")
    if bench.door is None:
        return
    key = f"{bench.door.prefix}:idem:default:k"
    await bench.door.ask("DEL", key)
    await bench.submit("b", idempotency_key="k")
    await bench.queue.revive("a")
    await bench.queue.cancel("a")
    assert await bench.door.ask("PTTL", key) == -1 and await bench.door.ask("GET", key) == b"digest b"


async def test_a_job_may_die_twice(bench: Bench) -> None:
    """A revived job that crashes again is dead again, and its evidence grows."""
    await quarantine(bench)
    await bench.queue.revive("a")
    (job,) = await bench.claim()
    (job,) = await bench.claim("fast", routed=(routed(job, "fast"),))
    back = Requeue("a", job.token, "worker_died", Fault.CRASH_ALONE, evidence=b"{}")
    assert await bench.queue.requeue([back]) == [OK]
    (listed,) = await bench.queue.dead()
    assert (listed.id, listed.crashes, listed.evidence) == ("a", 1, (EVIDENCE, b"{}"))
    assert await kinds(bench) == ["started", "token", "restarted", "started", "dead"]


async def test_revive_and_drop_twice(bench: Bench) -> None:
    """After a lost reply the same call gets the same answer and changes nothing."""
    await quarantine(bench, "a")
    await quarantine(bench, "b")
    assert await bench.queue.revive("a") == "queued"
    before = await view(bench), await bench.queue.events("a")
    assert await bench.queue.revive("a") == "queued"
    assert (await view(bench), await bench.queue.events("a")) == before
    assert (await bench.queue.drop("b"), await bench.queue.drop("b")) == ("dropped", "dropped")
    assert await bench.queue.revive("b") == "gone"
    if bench.door:
        assert await bench.door.ask("HGET", f"{bench.door.prefix}:counters", "jobs") == b"1"


async def test_only_the_dead(bench: Bench) -> None:
    """A job that is not dead is neither revived nor dropped; one that is not there is gone."""
    await bench.submit("a")
    for state in ("queued", "running", "done"):
        assert (await bench.queue.revive("a"), await bench.queue.drop("a")) == (state, state)
        if state == "queued":
            (job,) = await bench.claim()
        elif state == "running":
            await bench.queue.settle([done(job)])
    assert (await bench.queue.revive("no"), await bench.queue.drop("no")) == ("gone", "gone")


async def test_a_dropped_job_leaves_nothing(bench: Bench) -> None:
    """Its record, result, events and idempotency key are gone; id and key may be used anew."""
    await quarantine(bench, idempotency_key="k")
    assert await bench.queue.drop("a") == "dropped"
    assert await bench.queue.view("a") is None and await bench.queue.result("a") is None
    assert await bench.queue.events("a") == [] and await bench.queue.dead() == []
    (answer,) = await bench.submit("b", idempotency_key="k")
    assert (answer.id, answer.duplicate) == ("b", False)  # type: ignore[union-attr]


async def test_old_tokens_of_a_revived_job(bench: Bench) -> None:
    """Who held it in its first life has lost it."""
    bench.queue = await bench.again(Limits(max_crashes=1))
    job = await bench.run()
    await bench.queue.requeue([Requeue("a", job.token, "worker_died", Fault.CRASH_ALONE)])
    await bench.queue.revive("a")
    assert await bench.queue.append([Append("a", job.token, 0, "old", 1)]) == [LOST]
    assert await bench.queue.settle([done(job)]) == [LOST]
    assert await bench.queue.requeue([Requeue("a", job.token, "x")]) == [LOST]


async def test_a_list_that_names_what_is_not_there(bench: Bench) -> None:
    """An entry whose job vanished, or lives under the same name, is not shown, and the next call about it clears it."""
    await quarantine(bench)
    if bench.door is None:
        return
    dead = f"{bench.door.prefix}:dead"
    await bench.door.ask("ZADD", dead, 1, "lost-1", 2, "lost-2", 3, "alive")
    await bench.submit("alive")
    assert [job.id for job in await bench.queue.dead()] == ["a"]
    assert (await bench.queue.revive("lost-1"), await bench.queue.drop("lost-2")) == ("gone", "gone")
    assert await bench.queue.drop("alive") == "queued"
    assert await bench.door.ask("ZRANGE", dead, 0, -1) == [b"a"]


async def test_a_spoilt_record_stops_nobody(bench: Bench) -> None:
    """Garbage in one job's record does not keep the others from being listed, and is shown as far as it can be read."""
    await quarantine(bench, "a")
    await quarantine(bench, "b")
    if bench.door is None:
        return
    for field in ("prio", "attempt", "crashes", "submitted", "retries", "ended"):
        await bench.door.ask("HSET", f"{bench.door.prefix}:job:a", field, b"\xffx")
    await bench.door.ask("HSET", f"{bench.door.prefix}:job:a", "reason", b"\xff")
    assert sorted(job.id for job in await bench.queue.dead()) == ["a", "b"]
    spoilt = await view(bench, "a")
    assert (spoilt.state, spoilt.priority, spoilt.attempt, spoilt.reason) == ("dead", 0, 1, "\ufffd")
    assert await bench.queue.drop("a") == "dropped"
