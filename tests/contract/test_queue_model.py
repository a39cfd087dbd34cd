"""Random histories: the scripts and the fake must give the same answer to every call, and end in the same state."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import replace

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metamusesd.errors import MetamusesdError
from metamusesd.job import Result, Timings, decode_result, encode_result
from metamusesd.queues.answers import Kept, Recall
from metamusesd.queues.base import (
    INGRESS,
    Append,
    Claim,
    ClassLimits,
    Fault,
    JobEvent,
    JobView,
    Limits,
    Queue,
    Requeue,
    Routed,
    Settlement,
    Submission,
    Want,
)
from metamusesd.queues.memory import MemoryQueue
from metamusesd.queues.redis_queue import RedisQueue
from metamusesd.route import CacheNote, Route, encode_route

HOUR_MS = 3_600_000
CLASSES = (
    ClassLimits(max_queue_size=3, max_wait_ms=HOUR_MS),
    ClassLimits(max_wait_ms=HOUR_MS, timeout_ms=5 * HOUR_MS),
    ClassLimits(max_wait_ms=2 * HOUR_MS, timeout_ms=5 * HOUR_MS, timeout_action="delay"),
    ClassLimits(),
)
LIMITS = Limits(max_jobs=5, max_tenant_jobs=3, max_crashes=2, classes=CLASSES)
LEASE_MS = 600_000
IDS, TIERS, OWNERS = "abcdefg", ("fast", "heavy"), ("h:1", "h:2", "g:1")
CONTENT = 'é "latency_ms":7,"from_cache":false,"cache":{} \\ end\n'  # what the scripts must not take for fields
LIKE = encode_route(Route(tiers=(), lookup=CacheNote(kind="flight", score=0.9, entry="e", reason='} "lookup":{')))
START_MS = time.time_ns() // 1_000_000
_runs = itertools.count()

ids, flags, priorities = st.sampled_from(IDS), st.booleans(), st.integers(0, 3)
which = st.integers(0, 60)  # one of the tokens that were ever given out, the latest first
submits = st.tuples(
    st.just("submit"), ids, priorities, st.sampled_from("xy"), st.sampled_from(["", "k"]), st.sampled_from("tu"), flags
)
wants = st.lists(st.tuples(st.sampled_from([INGRESS, *TIERS]), st.integers(0, 3), priorities), min_size=1, max_size=3)
flights = st.sampled_from(["", "f", "f", "g"])
moves = st.lists(st.tuples(which, st.sampled_from([("fast",), ("heavy",), TIERS]), flights, flags), max_size=3)
calls = st.one_of(
    submits,
    st.tuples(st.just("claim"), st.sampled_from(OWNERS), wants, moves, flags),
    st.tuples(st.just("append"), which, st.integers(0, 4), st.text("aé🙂", max_size=4)),
    st.tuples(
        st.just("settle"),
        which,
        st.sampled_from(["done", "failed"]),
        flags,
        st.sampled_from(["", "k1", "k2"]),
        st.sampled_from(["engine_failed", "invalid_grammar"]),
    ),
    st.tuples(st.just("recall"), ids, st.sampled_from([("k1",), ("k2", "k1"), ()]), st.sampled_from(["", "u"])),
    st.tuples(st.just("complain"), ids),
    st.tuples(st.just("forget"), st.sampled_from(["", "t1"]), st.sampled_from(["", "red"])),
    st.tuples(st.just("requeue"), which, st.sampled_from(list(Fault)), st.sampled_from([0, 0, LEASE_MS]), flags),
    st.tuples(st.just("renew"), which),
    st.tuples(st.just("cancel"), ids),
    st.tuples(st.sampled_from(["revive", "drop", "position"]), ids),
    st.tuples(st.just("reap"), st.sampled_from(OWNERS), flags),
    st.tuples(st.just("age"), ids, st.sampled_from([2, 4, 6])),
    st.tuples(st.just("turn"), st.sampled_from([INGRESS, *TIERS]), st.integers(0, 7)),
    st.tuples(st.just("wait"), st.sampled_from([INGRESS, *TIERS])),
)


def plain(answer: object) -> object:
    """An answer without what differs between two queues by right: times and cursors; errors by their words."""
    if isinstance(answer, MetamusesdError):
        return type(answer).__name__, answer.fields
    if isinstance(answer, list | tuple) and not hasattr(answer, "_fields"):
        return [plain(each) for each in answer]
    if isinstance(answer, Claim):
        return replace(answer, submitted_ms=0, claimed_ms=0)
    if isinstance(answer, JobView):
        return replace(answer, submitted_ms=0, ended_ms=min(answer.ended_ms, 1))
    if isinstance(answer, JobEvent):
        if b'"request_id"' in answer.data:
            result = msgspec.structs.replace(decode_result(answer.data), latency_ms=0, timings=Timings())
            answer = replace(answer, data=repr(result).encode())
        return replace(answer, cursor="")
    return answer


class Replay:
    """Makes the calls of one history on one queue; tokens are named by age: both queues get the same calls."""

    def __init__(self, queue: Queue) -> None:
        self.queue, self.given, self.nonces, self.aged = queue, [("none", "n:1")], 0, 0

    def token(self, age: int) -> tuple[str, str]:
        return self.given[-1 - age % len(self.given)]

    async def make(self, name: str, *args: object) -> object:
        return await getattr(self, f"_{name}")(*args)

    async def _submit(self, id: str, priority: int, digest: str, key: str, tenant: str, stream: bool) -> object:
        job = Submission(id, b"{}", digest, priority, tenant, idempotency_key=key, reply_to="box", stream=stream)
        return await self.queue.submit([job])

    async def _claim(self, owner: str, wants: list, moves: list, repeat: bool) -> object:  # type: ignore[type-arg]
        self.nonces += 1
        routed = [
            Routed(*self.token(age), tiers, LIKE if similar else b"{}", flight) for age, tiers, flight, similar in moves
        ]
        args = (owner, f"n{self.nonces}", [Want(*want) for want in wants], routed)
        claims = await self.queue.claim(*args, lease_ms=LEASE_MS)
        if repeat and claims:
            assert await self.queue.claim(*args, lease_ms=LEASE_MS) == claims
        self.given += [(claim.id, claim.token) for claim in claims]
        return claims

    async def _append(self, age: int, offset: int, text: str) -> object:
        return await self.queue.append([Append(*self.token(age), offset, text, 1)])

    async def _settle(self, age: int, state: str, ours: bool, key: str, code: str) -> object:
        id, token = self.token(age)
        note = CacheNote(kind="exact" if key == "k1" else "semantic", score=0.5, entry=key, reason='a } "cache":')
        error = {"code": code, "message": "x"} if state == "failed" else None
        result = Result(
            request_id=id, state=state, content=CONTENT, tokens_generated=3, error=error, cache=note if key else None
        )
        labels = b'{"tenant":"t1","muse":"m","model":"x","tags":"blue red"}' if key == "k1" else b'{"tenant":"t2"}'
        answer = Kept(key, b"value " + token.encode(), labels) if key else None
        raw = encode_result(result) if ours else b"{}"
        replay = "replayed" if key == "k2" else ""
        return await self.queue.settle([Settlement(id, token, state, raw, answer, replay, 2)])

    async def _recall(self, id: str, keys: tuple[str, ...], asked: str) -> object:
        return await self.queue.recall([Recall(id, keys, asked), Recall("other", keys)])

    async def _complain(self, id: str) -> object:
        said = await self.queue.complain(id), await self.queue.complain(id)
        return said, await self.queue.complaints()

    async def _forget(self, tenant: str, tag: str) -> object:
        return await self.queue.forget(tenant=tenant, tag=tag), await self.queue.kept()

    async def _requeue(self, age: int, fault: Fault, delay_ms: int, reroute: bool) -> object:
        evidence = b'{"age":%d}' % age if fault == Fault.CRASH else b""
        return await self.queue.requeue([Requeue(*self.token(age), "why", fault, delay_ms, reroute, evidence)])

    async def _renew(self, age: int) -> object:
        return await self.queue.renew([self.token(age)], lease_ms=LEASE_MS)

    async def _cancel(self, id: str) -> object:
        return await self.queue.cancel(id)

    async def _revive(self, id: str) -> object:
        first = await self.queue.revive(id)
        assert await self.queue.revive(id) == first
        return first

    async def _drop(self, id: str) -> object:
        first = await self.queue.drop(id)
        assert await self.queue.drop(id) == first
        return first

    async def _position(self, id: str) -> object:
        return await self.queue.position(id)

    async def _reap(self, owner: str, takeover: bool) -> object:
        reaped = await self.queue.reap(owner, tiers=TIERS, takeover=takeover)
        return replace(reaped, requeued=tuple(sorted(reaped.requeued)))

    async def _age(self, id: str, hours: int) -> None:
        """The job was submitted earlier; never two at the same time."""
        self.aged += 1
        submitted_ms = START_MS - hours * HOUR_MS + self.aged
        if isinstance(self.queue, RedisQueue):
            ask, key = self.queue._door.ask, f"{self.queue.prefix}:job:{id}"
            if await ask("EXISTS", key):
                await ask("HSET", key, "submitted", submitted_ms)
        elif job := self.queue._store.get(id):  # type: ignore[attr-defined]
            job.submitted_ms = submitted_ms

    async def _turn(self, queue: str, turn: int) -> None:
        if isinstance(self.queue, RedisQueue):
            await self.queue._door.ask("HSET", f"{self.queue.prefix}:turns", queue, turn)
        else:
            self.queue._store.turns[queue] = turn  # type: ignore[attr-defined]

    async def _wait(self, queue: str) -> object:
        """Whether a wait would end at once, and if so, end it. (A wait in vain costs Redis 100 ms.)"""
        if isinstance(self.queue, RedisQueue):
            marked = await self.queue._door.ask("EXISTS", f"{self.queue.prefix}:marker:{queue}") == 1
        else:
            marked = queue in self.queue._store.markers  # type: ignore[attr-defined]
        return marked and await self.queue.wait([queue], 30)

    async def end(self) -> object:
        """All that can be seen of the queue after the history."""
        views = [await self.queue.view(id) for id in IDS]
        events = [await self.queue.events(id) for id in IDS]
        return (
            views,
            events,
            await self.queue.mail("box"),
            [d.by_class for d in await self.queue.depths([INGRESS, *TIERS])],
        )


async def compare(url: str, history: list[tuple]) -> None:  # type: ignore[type-arg]
    real = RedisQueue(url, f"model{next(_runs)}", LIMITS)
    await real.open()
    await real.configure()
    try:
        left, right = Replay(real), Replay(MemoryQueue(LIMITS))
        await right.queue.configure()
        for call in history:
            assert plain(await left.make(*call)) == plain(await right.make(*call)), call
        assert plain(await left.end()) == plain(await right.end())
    finally:
        await real.close()


@pytest.mark.parametrize("kind", ["redis6", "redis7"])
def test_the_fake_and_the_scripts_agree(kind: str, server_of) -> None:
    """Whatever is called in whatever order, with whatever old tokens, both answer alike."""
    url = server_of(kind).url

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(calls, min_size=5, max_size=60))
    def run(history: list[tuple]) -> None:  # type: ignore[type-arg]
        asyncio.run(compare(url, history))

    run()
