"""Keys that somebody else wrote, and memory that is full: the other jobs go on, and nothing is half written."""

from __future__ import annotations

import pytest

from metamusesd.errors import IdConflict, InvalidRequest
from metamusesd.queues.base import (
    INGRESS,
    Append,
    ClassLimits,
    Fault,
    Host,
    Limits,
    Requeue,
    Service,
    Settlement,
    Verdict,
    Want,
)
from tests.contract.bench import LEASE_MS, LOST, OK, OWNER, Bench, done, ids, routed, until
from tests.contract.test_queue_aging import HOUR_MS, backdate


async def spoil(bench: Bench, *names: str) -> None:
    """Each of these keys becomes a string."""
    assert bench.door
    for name in names:
        await bench.door.ask("SET", f"{bench.door.prefix}:{name}", "mine", "EX", 3600)


async def test_a_job_key_of_a_wrong_type_is_a_job_that_is_not_there(bench: Bench) -> None:
    """Every script goes on with the other jobs; queues and leases are cleared of its id."""
    if bench.door is None:
        return
    await bench.submit("bad", "a", "b")
    await spoil(bench, "job:bad")
    (again,) = await bench.submit("bad")
    assert isinstance(again, IdConflict)
    claims = await bench.claim()
    assert ids(claims) == ["a", "b"]
    await spoil(bench, "job:b")
    a, b = claims
    assert await bench.queue.append([Append("b", b.token, 0, "x", 1), Append("a", a.token)]) == [LOST, OK]
    assert await bench.queue.renew([("b", b.token), ("a", a.token)], lease_ms=LEASE_MS) == [LOST, OK]
    back = [Requeue(claim.id, claim.token, "x", Fault.KILLED) for claim in (b, a)]
    assert await bench.queue.requeue(back) == [LOST, OK]
    await bench.queue.reap("host-a:2", takeover=True)
    assert await bench.door.ask("ZCARD", f"{bench.door.prefix}:leases") == 0
    assert await bench.queue.cancel("b") == "gone"
    (a,) = await bench.claim()
    assert await bench.queue.settle([done(a)]) == [OK]
    await bench.door.ask("DEL", f"{bench.door.prefix}:recounted")
    await bench.queue.reap(OWNER)
    assert await bench.door.ask("EXISTS", f"{bench.door.prefix}:counters", f"{bench.door.prefix}:live") == 0


@pytest.mark.parametrize("field", ["prio", "score", "attempt", "crashes", "retries", "bytes", "deadline", "submitted",
                                   "written", "tenant", "queue", "tiers"])  # fmt: skip
async def test_garbage_in_one_job_stops_nobody(bench: Bench, field: str) -> None:
    """A job with a field that means nothing is claimed, given back and ended with its neighbours."""
    if bench.door is None:
        return
    bench.queue = await bench.again(Limits(classes=(ClassLimits(max_wait_ms=1, timeout_ms=HOUR_MS),) * 4))
    await bench.submit("bad", "a")
    await bench.door.ask("HSET", f"{bench.door.prefix}:job:bad", field, "no~thing")
    moves = tuple(routed(claim, "fast") for claim in await bench.claim())
    claims = await bench.claim("fast", routed=moves)
    assert sorted(ids(claims)) == ["a", "bad"]
    pieces = [Append(claim.id, claim.token, 0, "x", 1) for claim in claims]
    assert await bench.queue.append(pieces) == [OK, OK]
    back = [Requeue(claim.id, claim.token, "x", Fault.CRASH) for claim in claims]
    assert await bench.queue.requeue(back) == [OK, OK]
    await bench.queue.reap(OWNER, tiers=["fast"])
    claims = await bench.claim("fast", count=1) + await bench.claim("fast")
    assert sorted(ids(claims)) == ["a", "bad"]
    assert await bench.queue.settle([done(claim) for claim in claims]) == [OK, OK]


async def test_a_stream_of_a_wrong_type_stops_nobody(bench: Bench) -> None:
    """The job whose event stream or mailbox is somebody else's key ends all the same."""
    if bench.door is None:
        return
    job = await bench.run(reply_to="box")
    await bench.door.ask("DEL", f"{bench.door.prefix}:events:a")
    await spoil(bench, "events:a", "mail:box")
    assert await bench.queue.append([Append("a", job.token, 0, "x", 1)]) == [OK]
    assert await bench.queue.settle([done(job)]) == [OK]
    assert await bench.queue.result("a") == b'{"request_id":"a"}'


@pytest.mark.parametrize("ttl_s", ["0", "-1", "inf", "nan", "1e300", "soon"])
async def test_limits_that_mean_nothing(bench: Bench, ttl_s: str) -> None:
    """A job is cancelled, and its record expires, whatever stands among the published limits."""
    if bench.door is None:
        return
    await bench.submit("a")
    await bench.door.ask("HSET", f"{bench.door.prefix}:limits", "result_ttl_s", ttl_s)
    assert await bench.queue.cancel("a") == "cancelled"
    assert await bench.door.ask("PTTL", f"{bench.door.prefix}:job:a") > 0


async def test_a_marker_of_a_wrong_type_costs_a_hint(bench: Bench) -> None:
    """Jobs come in, are claimed and given back though nobody can be woken."""
    if bench.door is None:
        return
    await spoil(bench, "marker:ingress", "marker:fast")
    await bench.submit("a", "b")
    a, _ = (*await bench.claim(count=1), *await bench.claim(count=1))
    assert await bench.queue.requeue([Requeue("a", a.token, "x")]) == [OK]
    assert ids(await bench.claim()) == ["a"]


async def test_full_memory_stops_no_claim(bench: Bench) -> None:
    """Over maxmemory a claim that was made gets the same answer again, so does one that passes a marker on."""
    if bench.door is None:
        return
    await bench.submit("a", "b")
    want = [Want(INGRESS, 1)]
    first = await bench.queue.claim(OWNER, "once", want, lease_ms=LEASE_MS)
    await bench.door.ask("CONFIG", "SET", "maxmemory", 1)
    try:
        assert await bench.queue.claim(OWNER, "once", want, lease_ms=LEASE_MS) == first
        assert await bench.queue.claim(OWNER, "pass-on", [Want(INGRESS, 0)], lease_ms=LEASE_MS) == []
    finally:
        await bench.door.ask("CONFIG", "SET", "maxmemory", 0)


async def test_more_jobs_than_one_call_takes(bench: Bench) -> None:
    """A submit of more than a thousand is refused as a whole, so that no call is half done; a thousand go in."""
    if bench.door is None:
        return
    many = [part for n in range(4100) for part in (f"j{n}", "{}", "d", 1, "default", 0, "", "", 0)]
    with pytest.raises(InvalidRequest, match="at most 1000"):
        await bench.door.script("submit", *many)
    assert await bench.door.ask("EXISTS", f"{bench.door.prefix}:ingress") == 0
    await bench.door.script("submit", *many[: 9 * 1000])
    assert await bench.door.ask("ZCARD", f"{bench.door.prefix}:live") == 1000
    await bench.door.ask("DEL", *await bench.door.ask("KEYS", f"{bench.door.prefix}:*"))


async def test_full_memory_stops_no_sweep_and_no_turn(bench: Bench) -> None:
    """Over maxmemory reap times out, re-routes, counts and reaps; a contended claim takes its aged job; jobs end."""
    if bench.door is None:
        return
    ask = bench.door.ask
    late = ClassLimits(max_wait_ms=HOUR_MS, timeout_ms=4 * HOUR_MS)
    bench.queue = await bench.again(Limits(classes=(late, ClassLimits(), ClassLimits(), ClassLimits()), strand_ms=1))
    await bench.queue.announce(Host(OWNER, {"fast": Service("m", 1, 1.0)}), 60)
    stranded = await bench.run("stranded", ("heavy",))
    await bench.queue.requeue([Requeue("stranded", stranded.token, "x")])
    await bench.queue.reap(OWNER, tiers=["heavy"])
    await bench.submit("late", "old", priority=0)
    await bench.submit(*(f"c{n}" for n in range(9)), priority=3)
    await backdate(bench.queue, "late", 5 * HOUR_MS)
    await backdate(bench.queue, "old", 2 * HOUR_MS)
    await ask("DEL", f"{bench.door.prefix}:recounted")
    await ask("CONFIG", "SET", "maxmemory", 1)
    try:
        reaped = await bench.queue.reap(OWNER, tiers=["heavy"])
        assert (reaped.timed_out, reaped.rerouted) == (("late",), ("stranded",))
        claims = await bench.claim(count=8)
        assert [claim.id for claim in claims if claim.aged] == ["old"]
        ends = [Settlement(claim.id, claim.token, "done", b"{}") for claim in claims[1:]]
        assert await bench.queue.settle(ends) == [Verdict.OK] * 7
        assert await bench.queue.cancel(claims[0].id) == "cancelled"
    finally:
        await ask("CONFIG", "SET", "maxmemory", 0)

    async def rest() -> bool:
        return len(await bench.claim(INGRESS)) == 3

    assert await until(rest)
