"""One suite for every queue: the real scripts on Redis 6.2 and 7, and the fake, give the same answers."""

from __future__ import annotations

import asyncio

import pytest

from metamusesd.errors import IdConflict, InvalidRequest, QueueFull
from metamusesd.job import decode_result
from metamusesd.queues.base import (
    INGRESS,
    Append,
    Fault,
    Host,
    Limits,
    Receipt,
    Requeue,
    Routed,
    Service,
    Settlement,
    Submission,
    Verdict,
    Want,
    cancels,
)
from tests.contract.bench import CANCELLED, EXPIRED, LEASE_MS, LOST, OK, OWNER, Bench, done, ids, routed, until

# order


async def test_order(bench: Bench) -> None:
    """The highest class comes first, and inside a class whoever came first."""
    for n, priority in enumerate((0, 1, 2, 3, 0, 1, 2, 3)):
        await bench.submit(f"j{n}", priority=priority)
    assert ids(await bench.claim()) == ["j3", "j7", "j2", "j6", "j1", "j5", "j0", "j4"]


@pytest.mark.parametrize("start", [2**32 - 3, 2**43, 99_999_999_999_998])
async def test_order_is_exact_for_large_sequences(bench: Bench, start: int) -> None:
    """FIFO holds where a float of seven or fourteen digits would round the score."""
    await bench.set_sequence(start if start < 2**44 else 2**44 - 100)
    await bench.submit(*(f"j{n}" for n in range(20)), priority=0)
    await bench.submit("k", priority=1)
    assert ids(await bench.claim()) == ["k", *(f"j{n}" for n in range(20))]


async def test_order_survives_a_requeue(bench: Bench) -> None:
    """A job that was given back stands where it stood before."""
    await bench.submit("a", "b", "c")
    first, *_ = await bench.claim(count=1)
    await bench.queue.requeue([Requeue(first.id, first.token, "drain")])
    assert ids(await bench.claim()) == ["a", "b", "c"]


async def test_floor(bench: Bench) -> None:
    """A claim with a floor leaves the lower classes alone."""
    for priority in range(4):
        await bench.submit(f"p{priority}", priority=priority)
    assert ids(await bench.claim(floor=2)) == ["p3", "p2"]
    assert ids(await bench.claim(floor=0)) == ["p1", "p0"]


async def test_count(bench: Bench) -> None:
    """A claim takes at most what it wants, from each queue in turn."""
    await bench.submit(*"abcdef")
    jobs = await bench.claim(count=4)
    wants = [Want("fast", 1), Want(INGRESS, 1), Want("medium", 5)]
    moves = [routed(jobs[0], "fast"), routed(jobs[1], "medium"), routed(jobs[2], "fast", "medium")]
    claims = await bench.queue.claim(OWNER, "x", wants, moves, lease_ms=LEASE_MS)
    assert [(claim.id, claim.queue) for claim in claims] == [
        ("a", "fast"),
        ("e", INGRESS),
        ("b", "medium"),
        ("c", "medium"),
    ]


async def test_a_claim_takes_a_job_out_of_all_its_tiers(bench: Bench) -> None:
    """A job that stands in three tiers is claimed once."""
    await bench.submit("a")
    (job,) = await bench.claim()
    assert ids(await bench.claim("medium", routed=(routed(job, "fast", "medium", "heavy"),))) == ["a"]
    assert await bench.claim("fast") == await bench.claim("heavy") == []
    assert [sum(depth.by_class) for depth in await bench.queue.depths(["fast", "medium", "heavy"])] == [0, 0, 0]


async def test_a_claim_reports_the_job(bench: Bench) -> None:
    """A claim carries what was submitted, garbage bytes included, and what was routed."""
    body = bytes(range(256))
    await bench.queue.submit([Submission("a", body, "d", 2, tenant="t", deadline_ms=60_000, stream=False)])
    (job,) = await bench.claim()
    assert (job.body, job.priority, job.tenant, job.stream, job.route, job.queue) == (body, 2, "t", False, b"", INGRESS)
    assert job.deadline_ms == job.submitted_ms + 60_000 and job.claimed_ms >= job.submitted_ms
    (again,) = await bench.claim("fast", routed=(routed(job, "fast"),))
    assert (again.body, again.route, again.attempt, again.crashes) == (body, b'{"tiers":[]}', 1, 0)


# submit


async def test_bounds(bench: Bench) -> None:
    """Over a bound a submit is refused with a reason, and room comes back when a job ends."""
    queue = await bench.again(Limits(max_jobs=2, max_bytes=100, max_tenant_jobs=1))
    job = Submission("a", b"x" * 60, "d", 1, tenant="t1")
    other = Submission("b", b"x" * 60, "d", 1, tenant="t2")
    same_tenant = Submission("c", b"x", "d", 1, tenant="t1")
    small = Submission("d", b"x", "d", 1, tenant="t2")
    third = Submission("e", b"x", "d", 1, tenant="t3")
    answers = await queue.submit([job, other, same_tenant, small, third])
    bounds = [answer.fields["bound"] if isinstance(answer, QueueFull) else answer.id for answer in answers]
    assert bounds == ["a", "bytes", "tenant_jobs", "d", "jobs"]
    assert isinstance(answers[1], QueueFull) and answers[1].retry_after_s > 0 and answers[1].retryable
    await queue.cancel("a")
    assert await queue.submit([third]) == [Receipt("e", "queued")]
    await queue.cancel("d")
    await queue.cancel("e")


async def test_a_duplicate_keeps_its_place_in_a_full_queue(bench: Bench) -> None:
    """A repeated submit is answered, not refused, when the queue has filled up since."""
    queue = await bench.again(Limits(max_jobs=1))
    job = Submission("a", b"{}", "d", 1)
    assert await queue.submit([job, job]) == [Receipt("a", "queued"), Receipt("a", "queued", duplicate=True)]
    await queue.cancel("a")
    assert await queue.submit([job]) == [Receipt("a", "cancelled", duplicate=True)]


async def test_id_conflict(bench: Bench) -> None:
    """Another body under the same id, or the same idempotency key, is a typed conflict."""
    await bench.queue.submit([Submission("a", b"1", "d1", 1, idempotency_key="k")])
    answers = await bench.queue.submit(
        [Submission("a", b"2", "d2", 1), Submission("b", b"2", "d2", 1, idempotency_key="k")]
    )
    assert [isinstance(answer, IdConflict) and answer.fields for answer in answers] == [
        {"id": "a", "by": "id"},
        {"id": "a", "by": "idempotency_key"},
    ]
    assert await bench.queue.submit([Submission("b", b"2", "d2", 1, tenant="other", idempotency_key="k")]) == [
        Receipt("b", "queued")
    ]


async def test_fifty_submits_of_one_idempotency_key(bench: Bench) -> None:
    """Of fifty submits at once under one key one makes a job, and all fifty get its id and its mail."""
    submits = [
        bench.queue.submit([Submission(f"j{n}", b"{}", "d", 1, idempotency_key="k", reply_to=f"box{n}")])
        for n in range(50)
    ]
    receipts = [answer for answers in await asyncio.gather(*submits) for answer in answers]
    assert len({answer.id for answer in receipts if isinstance(answer, Receipt)}) == 1
    assert sum(isinstance(answer, Receipt) and not answer.duplicate for answer in receipts) == 1
    (job,) = await bench.claim()
    await bench.queue.settle([done(job)])
    for n in range(50):
        assert [event.kind for event in await bench.queue.mail(f"box{n}")] == ["done"]


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("id", ""),
        ("id", "a b"),
        ("id", "x" * 129),
        ("id", 'a"b'),
        ("tenant", "a:b"),
        ("tenant", ""),
        ("priority", 4),
        ("priority", -1),
        ("reply_to", "a b"),
        ("deadline_ms", -1),
        ("deadline_ms", 10**9),
        ("body", b"x" * (4 * 1024 * 1024 + 1)),
    ],
)
async def test_an_invalid_job_is_refused_whole(bench: Bench, field_name: str, value: object) -> None:
    """One invalid job in a call: nothing of the call is written, and the error names the field."""
    fields = {"id": "b", "body": b"{}", "digest": "d", "priority": 1} | {field_name: value}
    with pytest.raises(InvalidRequest) as caught:
        await bench.queue.submit([Submission("a", b"{}", "d", 1), Submission(**fields)])  # type: ignore[arg-type]
    assert caught.value.field == field_name
    assert await bench.queue.view("a") is None and await bench.claim() == []


# fences and repeats


async def test_a_claim_repeated_after_a_lost_reply(bench: Bench) -> None:
    """The same owner and nonce get the same jobs, and no others."""
    await bench.submit(*"abcde")
    first = await bench.queue.claim(OWNER, "n", [Want(INGRESS, 2)], lease_ms=LEASE_MS)
    assert await bench.queue.claim(OWNER, "n", [Want(INGRESS, 2)], lease_ms=LEASE_MS) == first
    assert ids(await bench.queue.claim(OWNER, "m", [Want(INGRESS, 9)], lease_ms=LEASE_MS)) == ["c", "d", "e"]


async def test_a_repeated_claim_holds_its_jobs_again(bench: Bench) -> None:
    """Redis was away for longer than the lease: the repeated claim gets its jobs with a new lease."""
    await bench.submit("a")
    (job,) = await bench.queue.claim(OWNER, "n", [Want(INGRESS, 1)], lease_ms=1)

    async def doubted() -> bool:
        return bool((await bench.queue.reap("host-b:1")).suspects)

    await until(doubted)
    assert await bench.queue.claim(OWNER, "n", [Want(INGRESS, 1)], lease_ms=LEASE_MS) == [job]
    assert (await bench.queue.reap("host-b:1")).suspects == ()


async def test_a_route_repeated_after_a_lost_reply(bench: Bench) -> None:
    """A routed job whose move was made already is left where it is."""
    await bench.submit("a")
    (job,) = await bench.claim()
    move = routed(job, "fast")
    (running,) = await bench.claim("fast", routed=(move,))
    assert await bench.claim("fast", routed=(move,)) == []
    assert await bench.queue.renew([(running.id, running.token)], lease_ms=LEASE_MS) == [OK]


async def test_settle_repeated(bench: Bench) -> None:
    """The same settle twice is ok twice; one that says something else is lost."""
    job = await bench.run()
    assert await bench.queue.settle([done(job)]) == [OK]
    assert await bench.queue.settle([done(job)]) == [OK]
    assert await bench.queue.settle([done(job, "failed")]) == [LOST]
    assert [event.kind for event in await bench.queue.events("a")] == ["started", "done"]


async def test_requeue_repeated(bench: Bench) -> None:
    """The same requeue twice counts one crash."""
    job = await bench.run()
    back = Requeue(job.id, job.token, "crash", Fault.CRASH)
    assert await bench.queue.requeue([back, back]) == [OK, OK]
    assert await bench.queue.requeue([back]) == [OK]
    (again,) = await bench.claim("fast")
    assert (again.crashes, again.attempt) == (1, 2)
    assert await bench.queue.requeue([back]) == [OK]
    assert await bench.queue.renew([(again.id, again.token)], lease_ms=LEASE_MS) == [OK]


async def test_an_old_token_changes_nothing(bench: Bench) -> None:
    """After a requeue and a new claim, the first holder's calls are lost."""
    old = await bench.run()
    await bench.queue.requeue([Requeue(old.id, old.token, "x")])
    (new,) = await bench.claim("fast")
    assert await bench.queue.renew([(old.id, old.token)], lease_ms=LEASE_MS) == [LOST]
    assert await bench.queue.append([Append(old.id, old.token, 0, "old")]) == [LOST]
    assert await bench.queue.settle([done(old)]) == [LOST]
    assert await bench.queue.settle([done(new)]) == [OK]


async def test_unknown_jobs(bench: Bench) -> None:
    """Calls about a job that is not there are lost, gone or None."""
    queue = bench.queue
    assert await queue.renew([("no", "t:1")], lease_ms=1) == [LOST]
    assert await queue.append([Append("no", "t:1"), Append("no", "")]) == [LOST, LOST]
    assert await queue.settle([Settlement("no", "t:1", "done", b"")]) == [LOST]
    assert await queue.requeue([Requeue("no", "t:1", "x")]) == [LOST]
    assert (await queue.cancel("no"), await queue.view("no"), await queue.result("no")) == ("gone", None, None)


async def test_one_call_for_many(bench: Bench) -> None:
    """A call answers each of its entries, in order, whatever becomes of the others."""
    await bench.submit(*(f"j{n}" for n in range(1500)), stream=False)
    jobs = [*await bench.claim(count=1000), *await bench.claim(count=1000)]
    assert len(jobs) == 1500
    await bench.queue.cancel("j1")
    verdicts = await bench.queue.settle([done(job) for job in jobs])
    assert verdicts == [OK, CANCELLED, *[OK] * 1498]
    assert await bench.queue.settle([]) == []


# appends


async def test_append_is_idempotent_by_offset(bench: Bench) -> None:
    """What was written before is skipped, a gap is lost, and text that overlaps continues where the stream ended."""
    job = await bench.run()

    async def append(offset: int, text: str) -> list[Verdict]:
        return await bench.queue.append([Append(job.id, job.token, offset, text, 1)])

    assert await append(0, "hé") == [OK]
    assert await append(0, "hé") == [OK]
    assert await append(3, "x") == [LOST]
    assert await append(0, "hé🙂l") == [OK]
    assert await append(1, "é🙂lo") == [OK]
    assert await append(0, "") == [OK]
    events = [event for event in await bench.queue.events("a") if event.kind == "token"]
    assert [(event.offset, event.text) for event in events] == [(0, "hé"), (2, "🙂l"), (4, "o")]


async def test_a_restart_is_told(bench: Bench) -> None:
    """A job that had started and is given back says `restarted`, and its offsets begin again."""
    job = await bench.run(reply_to="box")
    await bench.queue.append([Append("a", job.token, 0, "abc", 2)])
    await bench.queue.requeue([Requeue("a", job.token, "worker_died", Fault.KILLED)])
    (job,) = await bench.claim("fast")
    assert await bench.queue.append([Append("a", job.token, 0, "xy", 1)]) == [OK]
    await bench.queue.settle([done(job)])
    events = await bench.queue.events("a")
    assert [(event.kind, event.attempt, event.offset, event.text) for event in events] == [
        ("started", 1, 0, ""),
        ("token", 1, 0, "abc"),
        ("restarted", 2, 0, ""),
        ("started", 2, 0, ""),
        ("token", 2, 0, "xy"),
        ("done", 2, 0, ""),
    ]
    assert events[2].data == b"worker_died" and events[-1].data == b'{"request_id":"a"}'
    mailed = await bench.queue.mail("box")
    assert [(event.id, event.kind, event.text, event.data) for event in mailed] == [
        (event.id, event.kind, event.text, event.data) for event in events
    ]


async def test_a_give_back_that_nobody_read_is_silent(bench: Bench) -> None:
    """Given back unburnt before any text: no `restarted`, and no second `started`; after text, one of each."""
    job = await bench.run()
    for _ in range(3):
        await bench.queue.requeue([Requeue("a", job.token, "no_capacity")])
        (job,) = await bench.claim("fast")
    await bench.queue.append([Append("a", job.token, 0, "abc", 1)])
    await bench.queue.requeue([Requeue("a", job.token, "drain")])
    (job,) = await bench.claim("fast")
    await bench.queue.requeue([Requeue("a", job.token, "no_capacity")])
    await bench.claim("fast")
    kinds = [event.kind for event in await bench.queue.events("a")]
    assert kinds == ["started", "token", "restarted", "started"]


async def test_a_question_is_no_gap(bench: Bench) -> None:
    """An append without text asks for the verdict, wherever the writer believes that the stream is."""
    job = await bench.run()
    assert await bench.queue.append([Append("a", job.token, 7, "", 0)]) == [OK]


async def test_a_job_without_a_stream_says_only_its_end(bench: Bench) -> None:
    """`stream=False`: one event, in the stream and in the mailbox, and it carries the result."""
    job = await bench.run(stream=False, reply_to="box")
    assert await bench.queue.append([Append("a", job.token, 0, "abc", 2)]) == [OK]
    await bench.queue.settle([done(job)])
    for events in (await bench.queue.events("a"), await bench.queue.mail("box")):
        assert [(event.kind, event.data) for event in events] == [("done", b'{"request_id":"a"}')]


async def test_streams_are_capped(bench: Bench) -> None:
    """A stream forgets its oldest entries instead of growing, and keeps its last."""
    bench.queue = queue = await bench.again(Limits(stream_cap=100, mail_cap=100))
    job = await bench.run(reply_to="box")
    for start in range(0, 1000, 100):
        await queue.append([Append("a", job.token, n, "x", 1) for n in range(start, start + 100)])
    await queue.settle([done(job)])
    for events in (await queue.events("a"), await queue.mail("box")):
        assert 100 <= len(events) < 400 and events[-1].kind == "done"


async def test_reading_on(bench: Bench) -> None:
    """A reader goes on after its cursor, waits for the next entry, and gets nothing when the time is up."""
    job = await bench.run()
    (started,) = await bench.queue.events("a")
    waiting = asyncio.ensure_future(bench.queue.events("a", started.cursor, block_ms=30_000))
    await asyncio.sleep(0)
    await bench.queue.append([Append("a", job.token, 0, "hi", 1)])
    (token,) = await waiting
    assert (token.kind, token.text) == ("token", "hi")
    assert await bench.queue.events("a", token.cursor) == []
    assert await bench.queue.events("a", token.cursor, block_ms=5) == []


async def test_mail_from_now_on(bench: Bench) -> None:
    """`after="$"` waits for mail that is not there yet."""
    await bench.submit("a", "b", reply_to="box")
    await bench.queue.cancel("a")
    waiting = asyncio.ensure_future(bench.queue.mail("box", "$", block_ms=30_000))
    seen: list[str] = []
    while not waiting.done():
        await bench.submit(f"c{len(seen)}", reply_to="box")
        await bench.queue.cancel(f"c{len(seen)}")
        seen.append(f"c{len(seen)}")
        await asyncio.sleep(0.002)
    assert (await waiting)[0].id in seen


# cancel


@pytest.mark.parametrize("state", ["queued", "analysed", "ready", "running", "delayed"])
async def test_cancel_in_every_state(bench: Bench, state: str) -> None:
    """A cancelled job leaves every queue, says so, and its holder's next calls learn it."""
    await bench.submit("a", reply_to="box")
    job = None
    if state != "queued":
        (job,) = await bench.claim()
    if state == "ready":
        assert await bench.claim("none", routed=(routed(job, "fast", "heavy"),)) == []
    if state in ("running", "delayed"):
        (job,) = await bench.claim("fast", routed=(routed(job, "fast", "heavy"),))
    if state == "delayed":
        await bench.queue.requeue([Requeue("a", job.token, "x", delay_ms=60_000)])
    assert await bench.queue.cancel("a") == "cancelled"
    assert await bench.queue.cancel("a") == "cancelled"
    for queue in (INGRESS, "fast", "heavy"):
        assert await bench.claim(queue) == []
    if state in ("analysed", "running"):
        pair = (job.id, job.token)
        assert await bench.queue.renew([pair], lease_ms=LEASE_MS) == [CANCELLED]
        assert await bench.queue.append([Append(*pair)]) == [CANCELLED]
        assert await bench.queue.settle([done(job)]) == [CANCELLED]
        assert await bench.queue.requeue([Requeue(*pair, "x")]) == [CANCELLED]
    result = decode_result(await bench.queue.result("a") or b"")
    assert (result.state, result.error and result.error["code"]) == ("cancelled", "cancelled")
    assert (await bench.queue.mail("box"))[-1].kind == "cancelled"


async def test_cancel_after_the_end(bench: Bench) -> None:
    """A job that ended stays as it ended."""
    job = await bench.run()
    await bench.queue.settle([done(job)])
    assert await bench.queue.cancel("a") == "done"
    assert await bench.queue.result("a") == b'{"request_id":"a"}'


# deadlines, delays, crashes


@pytest.mark.parametrize("state", ["queued", "ready", "running", "delayed"])
async def test_deadline_in_every_state(bench: Bench, state: str) -> None:
    """The reaper settles an overdue job as expired wherever it stands, and its holder learns it."""
    await bench.submit("a", deadline_ms=300)
    job = None
    if state != "queued":
        (job,) = await bench.claim()
    if state == "ready":
        await bench.claim("none", routed=(routed(job, "fast"),))
    if state in ("running", "delayed"):
        (job,) = await bench.claim("fast", routed=(routed(job, "fast"),))
    if state == "delayed":
        await bench.queue.requeue([Requeue("a", job.token, "x", delay_ms=60_000)])

    async def expired() -> tuple[str, ...]:
        return (await bench.queue.reap(OWNER)).expired

    assert await until(expired) == ("a",)
    assert (await bench.queue.events("a"))[-1].kind == "expired"
    assert decode_result(await bench.queue.result("a") or b"").error["code"] == "expired"  # type: ignore[index]
    if state == "running":
        assert await bench.queue.append([Append("a", job.token)]) == [EXPIRED]
        assert await bench.queue.settle([done(job)]) == [EXPIRED]


async def test_a_claim_settles_overdue_jobs(bench: Bench) -> None:
    """A claim never hands out an overdue job: it ends there and then, and the next one is claimed."""
    await bench.submit("a", deadline_ms=1, priority=3)
    await bench.submit("b")

    async def overdue() -> bool:
        (job,) = await bench.claim(count=1)
        if job.id == "b":
            return True
        await bench.queue.requeue([Requeue(job.id, job.token, "too early")])
        return False

    await until(overdue)
    view = await bench.queue.view("a")
    assert view and view.state == "expired"


async def test_an_overdue_holder_is_told_and_may_settle(bench: Bench) -> None:
    """After the deadline renew and append say `expired`; the holder may still settle with what it has."""
    job = await bench.run(deadline_ms=250)

    async def told() -> bool:
        return await bench.queue.append([Append("a", job.token)]) == [EXPIRED]

    await until(told)
    assert await bench.queue.renew([("a", job.token)], lease_ms=LEASE_MS) == [EXPIRED]
    assert await bench.queue.settle([done(job, "expired", b'{"request_id":"a","state":"expired"}')]) == [OK]
    assert await bench.queue.settle([done(job, "expired", b'{"request_id":"a","state":"expired"}')]) == [OK]


async def test_delayed(bench: Bench) -> None:
    """A delayed job is claimed by nobody until its time, then it stands in its tiers again."""
    job = await bench.run()
    await bench.queue.requeue([Requeue("a", job.token, "retry", Fault.ERROR, 50)])
    view = await bench.queue.view("a")
    assert view and view.state == "delayed" and await bench.claim("fast") == []

    async def woken() -> tuple[str, ...]:
        return (await bench.queue.reap(OWNER)).woken

    assert await until(woken) == ("a",)
    assert [(claim.id, claim.attempt) for claim in await bench.claim("fast")] == [("a", 2)]


async def test_to_other_tiers(bench: Bench) -> None:
    """A job is given back to other queues than before, with a new route; its readers start again, nothing is burnt."""
    job = await bench.run("a")
    await bench.queue.append([Append("a", job.token, 0, "text", 1)])
    back = Requeue("a", job.token, "escalated", tiers=("medium", "heavy"), route=b'{"tiers":["medium","heavy"]}')
    assert await bench.queue.requeue([back]) == [OK]
    assert await bench.queue.requeue([back]) == [OK]
    assert await bench.claim("fast") == []
    (again,) = await bench.claim("heavy")
    assert (again.id, again.attempt, again.route) == ("a", 1, b'{"tiers":["medium","heavy"]}')
    assert await bench.claim("medium") == []
    kinds = [(event.kind, event.data) for event in await bench.queue.events("a")]
    assert kinds[-2:] == [("restarted", b"escalated"), ("started", b"")]
    assert await bench.queue.append([Append("a", again.token, 0, "new", 1)]) == [OK]


async def test_reroute(bench: Bench) -> None:
    """A job can be given back to ingress, to be routed anew."""
    job = await bench.run()
    await bench.queue.requeue([Requeue("a", job.token, "no host", reroute=True)])
    assert await bench.claim("fast") == []
    (again,) = await bench.claim()
    assert (again.id, again.route) == ("a", b"")


async def test_dead_after_crashes(bench: Bench) -> None:
    """The last crash quarantines: terminal, told, with its body kept and never run again."""
    await bench.run(reply_to="box")
    view = await bench.queue.view("a")
    assert view
    for crash in range(1, 4):
        if crash > 1:
            (job,) = await bench.claim("fast")
            assert (job.crashes, job.attempt) == (crash - 1, crash)
            token = job.token
        else:
            token = (await current_token(bench)) or ""
        assert await bench.queue.requeue([Requeue("a", token, "segfault", Fault.CRASH_ALONE)]) == [OK]
    view = await bench.queue.view("a")
    assert view and (view.state, view.crashes, view.attempt, view.body) == ("dead", 3, 3, b"{}")
    assert await bench.claim("fast") == []
    assert (await bench.queue.mail("box"))[-1].kind == "dead"
    assert await bench.queue.requeue([Requeue("a", token, "segfault", Fault.CRASH_ALONE)]) == [OK]


async def test_only_a_crash_alone_quarantines(bench: Bench) -> None:
    """However often workers died under a job among neighbours, it is not dead; after a crash alone it is."""
    job = await bench.run()
    for attempt in range(2, 7):
        assert await bench.queue.requeue([Requeue("a", job.token, "segfault", Fault.CRASH)]) == [OK]
        (job,) = await bench.claim("fast")
        assert (job.crashes, job.attempt) == (attempt - 1, attempt)
    assert await bench.queue.requeue([Requeue("a", job.token, "segfault", Fault.CRASH_ALONE)]) == [OK]
    view = await bench.queue.view("a")
    assert view and (view.state, view.attempt) == ("dead", 6)


async def current_token(bench: Bench) -> str | None:
    """The token that holds job `a`."""
    if bench.door is None:
        job = bench.queue._store.get("a")  # type: ignore[attr-defined]
        return job.token if job else None
    token = await bench.door.ask("HGET", f"{bench.door.prefix}:job:a", "token")
    return token.decode() if token else None


# leases


async def test_reap_with_doubt(bench: Bench) -> None:
    """An expired lease is reaped only at its second sighting, unburnt, and not when it was renewed in between."""
    await bench.submit("a", "b")
    a, b = await bench.claim(lease_ms=1)

    async def suspects() -> tuple[object, ...]:
        seen = (await bench.queue.reap("host-b:1")).suspects
        return seen if len(seen) == 2 else ()

    doubted = await until(suspects)
    assert await bench.queue.renew([(b.id, b.token)], lease_ms=LEASE_MS) == [OK]
    reaped = await bench.queue.reap("host-b:1", doubted)  # type: ignore[arg-type]
    assert (reaped.requeued, reaped.suspects) == (("a",), ())
    (again,) = await bench.claim()
    assert (again.id, again.attempt, again.crashes) == ("a", 1, 0)
    assert await bench.queue.settle([done(a)]) == [LOST]
    assert await bench.queue.settle([done(b)]) == [OK]


async def test_takeover(bench: Bench) -> None:
    """A dispatcher's successor takes back at once what the same instance held, and nobody else's."""
    await bench.submit("a", "b", "c")
    await bench.claim(count=1, owner="host-a:1")
    (mine,) = await bench.claim(count=1, owner="host-a:2")
    (foreign,) = await bench.claim(count=1, owner="host-ab:1")
    assert (await bench.queue.reap("host-a:2")).requeued == ()
    assert (await bench.queue.reap("host-a:2", takeover=True)).requeued == ("a",)
    held = [(mine.id, mine.token), (foreign.id, foreign.token)]
    assert await bench.queue.renew(held, lease_ms=LEASE_MS) == [OK, OK]


# waking up


async def test_a_submit_wakes_a_waiter(bench: Bench) -> None:
    """Whoever waits for ingress wakes when a job arrives, and sleeps on when none does."""
    assert not await bench.queue.wait([INGRESS], 0.005)
    waiting = asyncio.ensure_future(bench.queue.wait(["fast", INGRESS], 30))
    await asyncio.sleep(0)
    await bench.submit("a", "b")
    assert await waiting
    assert not await bench.queue.wait([INGRESS], 0.005)


async def test_a_claim_that_leaves_work_rearms_the_marker(bench: Bench) -> None:
    """A second dispatcher wakes for what the first one left; nobody wakes for an empty queue."""
    await bench.submit("a", "b")
    assert await bench.queue.wait([INGRESS], 30)
    await bench.claim(count=1)
    assert await bench.queue.wait([INGRESS], 30)
    await bench.claim(count=1)
    assert not await bench.queue.wait([INGRESS], 0.005)


async def test_no_marker_is_left_for_a_queue_that_was_emptied(bench: Bench) -> None:
    """A job that was claimed without waiting leaves no wake-up behind."""
    await bench.submit("a")
    await bench.claim()
    assert not await bench.queue.wait([INGRESS], 0.005)


async def test_a_cancel_wakes_who_runs_the_job(bench: Bench) -> None:
    """The cancel of a running job wakes its owner and nobody else; that of one that waits or has ended wakes none."""
    await bench.run("a")
    await bench.submit("b")
    assert await bench.queue.wait([INGRESS], 30)
    assert [await bench.queue.cancel(id) for id in ("b", "gone")] == ["cancelled", "gone"]
    assert not await bench.queue.wait([cancels(OWNER)], 0.005)
    assert await bench.queue.cancel("a") == "cancelled"
    assert not await bench.queue.wait([cancels("host-b:1")], 0.005)
    assert await bench.queue.wait([cancels(OWNER)], 30)
    assert await bench.queue.cancel("a") == "cancelled"
    assert not await bench.queue.wait([cancels(OWNER)], 0.005)


async def test_what_a_claim_leaves_below_its_floor_does_not_wake_it(bench: Bench) -> None:
    """A dispatcher that takes only high classes does not spin on the low ones that wait."""
    await bench.submit("low", priority=0)
    assert await bench.queue.wait([INGRESS], 30)
    assert await bench.claim(floor=2) == []
    assert not await bench.queue.wait([INGRESS], 0.005)


async def test_a_requeue_wakes(bench: Bench) -> None:
    """A job that was given back wakes whoever waits for one of its tiers."""
    job = await bench.run(tiers=("fast", "heavy"))
    assert not await bench.queue.wait(["fast", "heavy"], 0.005)
    await bench.queue.requeue([Requeue("a", job.token, "x")])
    assert await bench.queue.wait(["heavy"], 30)


# the rest


async def test_view_and_depths(bench: Bench) -> None:
    """An operator sees how a job stands, and how many wait in each class."""
    await bench.submit("a", "b", priority=2)
    await bench.submit("c", priority=0)
    (depth,) = await bench.queue.depths([INGRESS])
    assert depth.by_class == (1, 0, 2, 0) and depth.oldest_ms >= 0
    (job,) = await bench.claim(count=1)
    view = await bench.queue.view("a")
    assert view and (view.state, view.priority, view.owner, view.body) == ("running", 2, OWNER, b"{}")
    await bench.queue.settle([done(job)])
    view = await bench.queue.view("a")
    assert view and (view.state, view.body) == ("done", b"")


async def test_open_and_close_twice(bench: Bench) -> None:
    """Opening and closing twice is legal, and a host may announce itself."""
    await bench.queue.open()
    await bench.queue.announce(Host(OWNER, {"fast": Service("m", 1, 1.5)}), 5.0)
    await bench.queue.close()
    await bench.queue.close()
    await bench.queue.open()
    assert await bench.queue.view("a") is None


async def test_a_thousand_routed_jobs_ride_in_one_claim(bench: Bench) -> None:
    """A call may carry a full batch of routed jobs beside its wants."""
    await bench.submit(*(f"job-{n}" for n in range(1000)))
    claims = await bench.queue.claim("o:1", "a", [Want(INGRESS, 1000)], lease_ms=60_000)
    routed = [Routed(claim.id, claim.token, ("fast",), b"{}") for claim in claims]
    assert len(await bench.queue.claim("o:1", "b", [Want("fast", 1000)], routed, lease_ms=60_000)) == 1000
