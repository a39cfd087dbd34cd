"""Equal jobs that are under way together: one leads and is computed, the others follow. Scripts and fake alike."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from metamusesd.job import Result, decode_result, encode_result
from metamusesd.queues.base import (
    INGRESS,
    Append,
    Claim,
    ClassLimits,
    Fault,
    Limits,
    Requeue,
    Routed,
    Settlement,
    Verdict,
)
from metamusesd.route import CacheNote, Route, encode_route
from tests.contract.bench import CANCELLED, OK, Bench, until

FLIGHT = "0f" * 16


async def fly(bench: Bench, *ids: str, **fields: object) -> list[Claim]:
    """Submit and route these jobs as one flight; what can then be claimed of tier fast."""
    await bench.submit(*ids, **fields)
    claims = await bench.claim(INGRESS)
    routed = tuple(Routed(claim.id, claim.token, ("fast",), b"{}", FLIGHT) for claim in claims)
    return await bench.claim("fast", routed=routed)


def done(claim: Claim, content: str = "Paris.") -> Settlement:
    result = Result(request_id=claim.id, content=content, tokens_generated=2, latency_ms=7.5, model_name="m")
    return Settlement(claim.id, claim.token, "done", encode_result(result))


async def states(bench: Bench, *ids: str) -> list[str]:
    return [(await bench.queue.view(id)).state for id in ids]  # type: ignore[union-attr]


async def test_fifty_equal_jobs_are_computed_once(bench: Bench) -> None:
    """One claim for all of them; each gets the answer under its own id, marked, and with a stream of its own."""
    ids = [f"j{n}" for n in range(50)]
    claims = await fly(bench, *ids, reply_to="box")
    assert [claim.id for claim in claims] == ["j0"]
    assert await states(bench, *ids[1:]) == ["following"] * 49
    assert await bench.queue.settle([done(claims[0], 'He said "latency_ms":9, "from_cache":false')]) == [OK]
    assert await states(bench, *ids) == ["done"] * 50
    for id in ids[1:]:
        result = decode_result(await bench.queue.result(id) or b"")
        assert result.request_id == id and result.content == 'He said "latency_ms":9, "from_cache":false'
        assert result.from_cache and result.cache is not None and result.cache.kind == "flight"
        assert result.cache.reason == "an equal job was under way" and result.cache.score == 1
        assert result.latency_ms != 7.5 and result.timings.total_ms == result.latency_ms
        kinds = [event.kind for event in await bench.queue.events(id)]
        assert kinds == ["started", "token", "done"]
    mail = await bench.queue.mail("box")
    assert sorted(event.id for event in mail if event.kind == "done") == sorted(ids)
    assert not await bench.claim("fast") and not await bench.claim(INGRESS)


async def test_the_next_equal_job_after_the_end_is_computed(bench: Bench) -> None:
    """A flight ends with its leader."""
    (first,) = await fly(bench, "a")
    await bench.queue.settle([done(first)])
    assert [claim.id for claim in await fly(bench, "b")] == ["b"]


@pytest.mark.parametrize("end", ["failed", "cancelled", "expired"])
async def test_a_leader_that_fails_hands_over(bench: Bench, end: str) -> None:
    """A follower leads, the others follow it; what happened to the old leader is its own."""
    (leader,) = await fly(bench, "a", "b", "c")
    if end == "cancelled":
        assert await bench.queue.cancel("a") == "cancelled"
        assert await bench.queue.append([Append("a", leader.token, 0, "x", 1)]) == [CANCELLED]
    else:
        failure = encode_result(Result(request_id="a", state=end, error={"code": "x", "message": "x"}))
        assert await bench.queue.settle([Settlement("a", leader.token, end, failure)]) == [OK]
    assert await states(bench, "a", "b", "c") == [end, "ready", "following"]
    (heir,) = await bench.claim("fast")
    assert heir.id == "b"
    await bench.queue.settle([done(heir)])
    assert await states(bench, "b", "c") == ["done", "done"]


async def test_equal_poison_crashes_as_one(bench: Bench) -> None:
    """The crashes under a leader count for whoever leads after it; when it is dead, so are those that follow it."""
    (claim,) = await fly(bench, "a", "b", "c")
    for _ in range(2):
        await bench.queue.requeue([Requeue(claim.id, claim.token, "worker_died", Fault.CRASH, evidence=b'{"how":"x"}')])
        (claim,) = await bench.claim("fast")
    await bench.queue.cancel("a")
    (claim,) = await bench.claim("fast")
    assert (claim.id, claim.crashes) == ("b", 2)
    last = Requeue(claim.id, claim.token, "worker_died", Fault.CRASH_ALONE, evidence=b'{"how":"y"}')
    assert await bench.queue.requeue([last]) == [OK]
    assert await states(bench, "a", "b", "c") == ["cancelled", "dead", "dead"]
    quarantined = {view.id: view for view in await bench.queue.dead()}
    assert set(quarantined) == {"b", "c"} and quarantined["c"].crashes == 3
    assert json.loads(quarantined["c"].evidence[-1]) == {"how": "y"}
    assert await bench.queue.revive("c") == "queued"
    (again,) = await bench.claim(INGRESS)
    (alone,) = await bench.claim("fast", routed=(Routed("c", again.token, ("fast",), b"{}", FLIGHT),))
    assert (alone.id, alone.crashes) == ("c", 0)


async def test_a_leader_that_is_given_back_goes_on_leading(bench: Bench) -> None:
    """A dispatcher's death or a retry costs the flight its run, and nobody a place."""
    (leader,) = await fly(bench, "a", "b")
    await bench.queue.requeue([Requeue("a", leader.token, "drain")])
    (leader,) = await fly(bench, "c")
    assert leader.id == "a" and await states(bench, "b", "c") == ["following", "following"]
    await bench.queue.settle([done(leader)])
    assert await states(bench, "a", "b", "c") == ["done"] * 3


async def test_followers_end_on_their_own(bench: Bench) -> None:
    """A follower is cancelled, or its deadline passes, and nobody else hears of it."""
    (leader,) = await fly(bench, "a", "b")
    await fly(bench, "late", deadline_ms=250)
    assert await states(bench, "late") == ["following"]
    assert await bench.queue.cancel("b") == "cancelled"

    async def expired() -> tuple[str, ...]:
        return (await bench.queue.reap("host-a:1", tiers=["fast"])).expired

    assert await until(expired) == ("late",)
    assert await bench.queue.append([Append("a", leader.token, 0, "x", 1)]) == [OK]
    await bench.queue.settle([done(leader)])
    assert await states(bench, "a", "b", "late") == ["done", "cancelled", "expired"]


async def test_a_waiting_leader_gets_the_higher_class(bench: Bench) -> None:
    """A critical job that follows a low one lifts it before the normal ones, in the queue and in the counters."""
    await bench.submit("normal")
    (other,) = await bench.claim(INGRESS)
    await bench.claim("heavy", 0, routed=(Routed("normal", other.token, ("fast",), b"{}"),))
    await bench.submit("low", priority=0)
    (low,) = await bench.claim(INGRESS)
    await bench.claim("heavy", 0, routed=(Routed("low", low.token, ("fast",), b"{}", FLIGHT),))
    await bench.submit("urgent", priority=3)
    (urgent,) = await bench.claim(INGRESS)
    routed = (Routed("urgent", urgent.token, ("fast",), b"{}", FLIGHT),)
    claims = await bench.claim("fast", routed=routed)
    assert [(claim.id, claim.priority) for claim in claims] == [("low", 3), ("normal", 1)]
    await bench.queue.settle([done(claim) for claim in claims])
    assert await states(bench, "low", "normal", "urgent") == ["done"] * 3


async def test_in_one_call_too(bench: Bench) -> None:
    """Jobs that are routed together: the first leads, with the highest class of all."""
    await bench.submit("a", priority=0)
    await bench.submit("b", priority=2)
    claims = await bench.claim(INGRESS)
    claims.sort(key=lambda claim: claim.id)
    routed = tuple(Routed(claim.id, claim.token, ("fast", "heavy"), b"{}", FLIGHT) for claim in claims)
    (leader,) = await bench.claim("heavy", routed=routed)
    assert (leader.id, leader.priority) == ("a", 2)


async def test_a_running_leader_hears_of_a_higher_class(bench: Bench) -> None:
    """Its holder is woken, and told once with the answer to its next append."""
    (leader,) = await fly(bench, "low", priority=0)
    assert await fly(bench, "urgent", priority=3) == []
    assert await bench.queue.wait(["cancels:host-a:1"], 5)
    verdicts = [(await bench.queue.append([Append("low", leader.token)]))[0] for _ in range(2)]
    assert verdicts == [Verdict.RAISED, OK]
    assert (await bench.queue.view("low")).priority == 3  # type: ignore[union-attr]


async def test_a_flight_is_bounded(bench: Bench) -> None:
    """After 256 followers the next job goes alone."""
    claims = []
    for first in range(0, 258, 86):
        claims += await fly(bench, *(f"j{n:03}" for n in range(first, first + 86)))
    assert [claim.id for claim in claims] == ["j000", "j257"]


async def test_a_leader_that_takes_another_flight_leaves_its_own(bench: Bench) -> None:
    """Routed again with other models, it leads another flight, and its followers are not left behind."""
    (leader,) = await fly(bench, "a", "b")
    await bench.queue.requeue([Requeue("a", leader.token, "why", reroute=True)])
    (claim,) = await bench.claim(INGRESS)
    claims = await bench.claim("fast", routed=(Routed("a", claim.token, ("fast",), b"{}", "1e" * 16),))
    assert sorted(claim.id for claim in claims) == ["a", "b"]


async def test_a_result_of_another_form_is_not_shared(bench: Bench) -> None:
    """Rather than to guess, the followers run."""
    (leader,) = await fly(bench, "a", "b")
    await bench.queue.settle([Settlement("a", leader.token, "done", b"{}")])
    assert [claim.id for claim in await bench.claim("fast")] == ["b"]


async def test_followers_of_a_leader_that_vanished_are_set_free(bench: Bench) -> None:
    """Somebody deletes the leader, or the whole flight: the recount finds who stands nowhere."""
    if bench.door is None:
        pytest.skip("the fake has no keys that somebody could delete")
    for broken in ("job:a", f"flight:{FLIGHT}"):
        prefix = bench.queue.prefix  # type: ignore[attr-defined]
        await fly(bench, "a", "b")
        await bench.door.ask("DEL", f"{prefix}:{broken}", f"{prefix}:recounted")
        await bench.queue.reap("host-a:1")
        assert [claim.id for claim in await bench.claim("fast")] == ["b"]
        await bench.door.ask("FLUSHALL")


async def test_a_follower_stands_where_its_leader_stands(bench: Bench) -> None:
    """Position and state of a follower."""
    await bench.submit("a", "b")
    claims = await bench.claim(INGRESS)
    routed = tuple(Routed(claim.id, claim.token, ("fast",), b"{}", FLIGHT) for claim in claims)
    await bench.claim("heavy", 0, routed=routed)
    position = await bench.queue.position("b")
    assert position is not None and (position.state, position.queue, position.ahead) == ("following", "fast", 0)


async def test_what_is_wrong_for_all_is_told_to_all(bench: Bench) -> None:
    """An error of the request itself: the followers need not fail one after another."""
    (leader,) = await fly(bench, "a", "b", "c")
    error = {"code": "context_overflow", "message": "x"}
    raw = encode_result(Result(request_id="a", state="failed", error=error))
    assert await bench.queue.settle([Settlement("a", leader.token, "failed", raw)]) == [OK]
    assert await states(bench, "a", "b", "c") == ["failed"] * 3
    result = decode_result(await bench.queue.result("c") or b"")
    assert result.request_id == "c" and result.error == error


LIKE = encode_route(Route(tiers=("fast",), lookup=CacheNote(kind="flight", score=0.96, entry="e", reason="synonym")))


async def follow_by_meaning(bench: Bench, id: str, flight: str = FLIGHT) -> None:
    await bench.submit(id)
    (claim,) = await bench.claim(INGRESS)
    assert not await bench.claim("fast", routed=(Routed(id, claim.token, ("fast",), LIKE, flight),))


async def test_who_follows_by_meaning_keeps_the_note_of_that(bench: Bench) -> None:
    """Its result says with what score and why it was taken for the same question."""
    (leader,) = await fly(bench, "a")
    await follow_by_meaning(bench, "b")
    await bench.queue.settle([done(leader)])
    note = decode_result(await bench.queue.result("b") or b"").cache
    assert note == CacheNote(kind="flight", score=0.96, entry="e", reason="synonym")


async def test_who_follows_by_meaning_does_not_die_with_its_leader(bench: Bench) -> None:
    """It never crashed anything: it runs, with the leader's crashes against it, so alone."""
    (leader,) = await fly(bench, "a")
    await follow_by_meaning(bench, "b")
    for fault in (Fault.CRASH, Fault.CRASH, Fault.CRASH_ALONE):
        await bench.queue.requeue([Requeue(leader.id, leader.token, "worker_died", fault)])
        (leader,) = await bench.claim("fast")
    assert (leader.id, leader.crashes) == ("b", 3)
    assert await states(bench, "a") == ["dead"]


async def test_huge_answers_are_not_copied_for_ever(bench: Bench) -> None:
    """Over some megabytes the rest of the followers is routed again: the cache has the answer for them."""
    ids = [f"j{n:02}" for n in range(30)]
    (leader,) = await fly(bench, *ids)
    await bench.queue.settle([done(leader, "x" * 1_000_000)])
    ended = (await states(bench, *ids)).count("done")
    if bench.door is None:
        assert ended == 30  # the fake has no server that could be held up
        return
    assert 2 < ended < 10
    assert len(await bench.claim(INGRESS)) == 30 - ended


async def test_class_time_outs_in_a_flight(bench: Bench) -> None:
    """All whose time is out go in one sweep; an heir of a leader that had run, and who leads a higher class, do not."""
    classes = (ClassLimits(timeout_ms=200), ClassLimits(timeout_ms=200), ClassLimits(), ClassLimits(timeout_ms=50))
    bench.queue = await bench.again(replace(Limits(), classes=classes))
    ids = [f"j{n:02}" for n in range(40)]
    await bench.submit(*ids)
    routed = tuple(Routed(each.id, each.token, ("fast",), b"{}", FLIGHT) for each in await bench.claim(INGRESS))
    await bench.claim("heavy", 0, routed=routed)
    running, lifted = await fly_other(bench, "run", "heir"), await fly_other(bench, "low", "urgent")
    assert [claim.id for claim in running] == ["run"] and not lifted
    await bench.queue.cancel("run")
    async with asyncio.timeout(10):
        while "ready" in await states(bench, *ids):
            await bench.queue.reap("host-a:1", tiers=["fast", "heavy"])
            left = [state for state in await states(bench, *ids) if state != "failed"]
            assert len(left) in (0, 40)
            await asyncio.sleep(0.02)
    assert await states(bench, "heir", "low", "urgent") == ["ready", "ready", "following"]


async def fly_other(bench: Bench, first: str, second: str) -> list[Claim]:
    """Two jobs of another flight, `low` of class low and `urgent` of class critical; claimed unless they are those."""
    claims = []
    for id, priority in ((first, 0 if first == "low" else 1), (second, 3 if second == "urgent" else 1)):
        await bench.submit(id, priority=priority)
        (claim,) = await bench.claim(INGRESS)
        routed = (Routed(id, claim.token, ("heavy",), b"{}", first),)
        claims += await bench.claim("heavy", int(first != "low"), routed=routed)
    return claims


async def test_a_leader_that_leaves_in_the_call_in_which_another_joins(bench: Bench) -> None:
    """Nobody follows a flight that is not there any more."""
    (leader,) = await fly(bench, "a")
    await bench.queue.requeue([Requeue("a", leader.token, "why", reroute=True)])
    await bench.submit("b")
    claims = {claim.id: claim.token for claim in await bench.claim(INGRESS)}
    routed = (
        Routed("b", claims["b"], ("fast",), b"{}", FLIGHT), Routed("a", claims["a"], ("fast",), b"{}", "1e" * 16),
    )  # fmt: skip
    assert sorted(claim.id for claim in await bench.claim("fast", routed=routed)) == ["a", "b"]


async def test_an_heir_has_its_marker(bench: Bench) -> None:
    """The leader's deadline passes in its queue; the claim that finds it out wakes whoever takes the heir."""
    await bench.submit("a", deadline_ms=250)
    await bench.submit("b")
    routed = tuple(Routed(each.id, each.token, ("fast",), b"{}", FLIGHT) for each in await bench.claim(INGRESS))
    await bench.claim("heavy", 0, routed=routed)
    await bench.queue.wait(["fast"], 5)
    await asyncio.sleep(0.3)
    claims = await bench.claim("fast", 1)
    assert claims or await bench.queue.wait(["fast"], 5)
    assert [claim.id for claim in claims or await bench.claim("fast")] == ["b"]


async def test_two_tenants_never_fly_together(bench: Bench) -> None:
    """Even if somebody gives both the same digest."""
    assert len(await fly(bench, "a", tenant="t1")) == len(await fly(bench, "b", tenant="t2")) == 1


async def test_a_spoilt_flight_stops_nobody(bench: Bench) -> None:
    """A key of a wrong type in its place: followers can be cancelled and expire, and all else is swept."""
    if bench.door is None:
        pytest.skip("the fake has no keys that somebody could spoil")
    prefix = bench.queue.prefix  # type: ignore[attr-defined]
    await fly(bench, "a", "b", "c", deadline_ms=1000)
    await bench.door.ask("SET", f"{prefix}:flight:{FLIGHT}", "spoilt", "PX", 60_000)
    assert await bench.queue.cancel("b") == "cancelled"
    await bench.submit("other", deadline_ms=1)
    expired: set[str] = set()
    async with asyncio.timeout(10):
        while expired != {"a", "c", "other"}:
            expired |= set((await bench.queue.reap("host-a:1")).expired)
            await asyncio.sleep(0.02)
