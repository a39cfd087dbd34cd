"""The exact cache beside the queue: what is kept with a settle, found by recall, forgotten. Scripts and fake alike."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from metamusesd.job import Result, encode_result
from metamusesd.queues.answers import AnswerLimits, Complaint, Kept, Recall, Recalled
from metamusesd.queues.base import Limits, Queue, Settlement
from metamusesd.route import CacheNote
from tests.contract.bench import LOST, OK, Bench

LABELS = b'{"tenant":"t1","muse":"7","model":"sha256:x","tags":"red blue"}'


async def keep(bench: Bench, id: str, key: str, value: bytes = b"v", labels: bytes = LABELS) -> None:
    claim = await bench.run(id)
    end = Settlement(id, claim.token, "done", encode_result(Result(request_id=id)), Kept(key, value, labels))
    assert await bench.queue.settle([end]) == [OK]


async def ask(queue: Queue, *keys: str, id: str = "asker", asked: str = "") -> Recalled:
    return (await queue.recall([Recall(id, keys, asked)]))[0]


async def test_an_answer_is_kept_by_the_settle_and_found(bench: Bench) -> None:
    """The first key that has one wins; nothing is found under others."""
    await keep(bench, "a", "k1", b"one")
    await keep(bench, "b", "k2", b"two")
    assert await ask(bench.queue, "k0", "k2", "k1") == Recalled("k2", b"two")
    assert await ask(bench.queue, "k0") == Recalled()
    assert (await bench.queue.kept())[0] == 2


async def test_only_who_ends_the_job_as_done_leaves_an_answer(bench: Bench) -> None:
    """A failed job, and a settle by an old token, leave none: errors are never cached."""
    claim = await bench.run("a")
    end = Settlement("a", claim.token, "failed", b"{}", Kept("k1", b"v"))
    assert await bench.queue.settle([end]) == [OK]
    claim = await bench.run("b")
    assert await bench.queue.settle([Settlement("b", "old:1", "done", b"{}", Kept("k1", b"v"))]) == [LOST]
    assert await ask(bench.queue, "k1") == Recalled()


async def test_the_same_user_again_wants_another_answer(bench: Bench) -> None:
    """Within repeat_ms, under another id; the same job, looked at again, is no repetition, nor is another user."""
    await keep(bench, "a", "k1")
    assert not (await ask(bench.queue, "k1", id="x", asked="user1")).repeated
    assert (await ask(bench.queue, "k1", id="x", asked="user1")).key == "k1"
    assert await ask(bench.queue, "k1", id="y", asked="user1") == Recalled(repeated=True)
    assert (await ask(bench.queue, "k1", id="z", asked="user2")).key == "k1"


async def test_the_least_recently_used_go_first(bench: Bench) -> None:
    """By number and by bytes; what was found a moment ago stays."""
    for limits in (AnswerLimits(most=2), AnswerLimits(most_bytes=2 * (2 + len(LABELS) + 100) + 50)):
        bench.queue = queue = await bench.again(replace(Limits(), answers=limits))
        await queue.forget()
        for number, key in enumerate(("k1", "k2")):
            await keep(bench, f"a{number}{limits.most}", key, b"x" * 100)
            await asyncio.sleep(0.002)  # the clock that orders them has milliseconds
        assert (await ask(queue, "k1")).key == "k1"
        await asyncio.sleep(0.002)
        await keep(bench, f"b{limits.most}", "k3", b"x" * 100)
        assert [(await ask(queue, key)).key for key in ("k1", "k2", "k3")] == ["k1", "", "k3"]


async def test_an_answer_expires(bench: Bench) -> None:
    """After its time nobody finds it."""
    bench.queue = queue = await bench.again(replace(Limits(), answers=AnswerLimits(ttl_ms=30)))
    await keep(bench, "a", "k1")
    async with asyncio.timeout(5):
        while (await ask(queue, "k1")).key:
            await asyncio.sleep(0.005)


async def test_answers_are_forgotten_by_label(bench: Bench) -> None:
    """Every label that is given must match; without one, all go."""
    await keep(bench, "a", "k1")
    await keep(bench, "b", "k2", labels=b'{"tenant":"t2","muse":"7","model":"sha256:x","tags":""}')
    assert await bench.queue.forget(tenant="t2", muse="8") == 0
    assert await bench.queue.forget(tag="re") == 0
    assert await bench.queue.forget(tenant="t1", muse="7", model="sha256:x", tag="blue") == 1
    assert [(await ask(bench.queue, key)).key for key in ("k1", "k2")] == ["", "k2"]
    assert await bench.queue.forget() == 1
    assert await bench.queue.kept() == (0, 0)


@pytest.mark.parametrize("kind", ["exact", "semantic", "flight", "miss", ""])
async def test_a_wrong_hit_is_reported_once(bench: Bench, kind: str) -> None:
    """An exact answer goes at once; a semantic hit becomes a complaint for the vectors process; the rest is no hit."""
    await keep(bench, "source", "k1")
    claim = await bench.run("asker")
    note = CacheNote(kind=kind, score=0.97, entry="k1") if kind else None
    result = encode_result(Result(request_id="asker", cache=note))
    await bench.queue.settle([Settlement("asker", claim.token, "done", result)])
    noted = kind in ("exact", "semantic")
    assert [await bench.queue.complain("asker") for _ in range(2)] == ["noted" if noted else "not_cached"] * 2
    assert (await ask(bench.queue, "k1")).key == ("" if kind == "exact" else "k1")
    expected = [Complaint("k1", 0.97)] if kind == "semantic" else []
    assert await bench.queue.complaints() == expected
    assert await bench.queue.complaints() == []
    assert await bench.queue.complain("nobody") == "gone"


async def test_foreign_keys_cost_answers_and_no_job(bench: Bench) -> None:
    """Keys of a wrong type where the answers are kept: jobs end all the same, and nothing wrong is found."""
    if bench.door is None:
        pytest.skip("the fake has no keys that somebody could spoil")
    prefix = bench.queue.prefix  # type: ignore[attr-defined]
    for name in ("answers", "answers:bytes", "answer:k1", "asked:user"):
        await bench.door.ask("RPUSH", f"{prefix}:{name}", "spoilt")
    await keep(bench, "a", "k1")
    await keep(bench, "b", "k2")
    assert (await ask(bench.queue, "k2", asked="user")).value == b"v"
    await bench.door.ask(
        "DEL", *(f"{prefix}:{name}" for name in ("answers", "answers:bytes", "answer:k1", "answer:k2"))
    )
    await bench.door.ask("HSET", f"{prefix}:answers:bytes", "sum", "many")
    await keep(bench, "c", "k3")
    assert (await ask(bench.queue, "k3")).value == b"v"
    await bench.door.ask("DEL", f"{prefix}:asked:user")


async def test_a_purge_under_traffic_finds_all(bench: Bench) -> None:
    """Hits move answers to the end while it goes through them."""
    keys = [f"k{n}" for n in range(1100)]
    for key in keys:
        if bench.door is None:
            bench.queue.remember(Kept(key, b"v", LABELS))  # type: ignore[attr-defined]
        else:
            prefix = bench.queue.prefix  # type: ignore[attr-defined]
            await bench.door.ask("HSET", f"{prefix}:answer:{key}", "value", "v", "labels", LABELS)
            await bench.door.ask("ZADD", f"{prefix}:answers", 1, key)
            await bench.door.ask("PEXPIRE", f"{prefix}:answer:{key}", 60_000)
    async with asyncio.TaskGroup() as group:
        purge = group.create_task(bench.queue.forget(tenant="t1"))
        for first in range(0, 1100, 100):
            await bench.queue.recall([Recall("x", (key,)) for key in keys[first : first + 100]])
    assert purge.result() <= 1100
    assert not [found for found in await bench.queue.recall([Recall("x", (key,)) for key in keys[:1000]]) if found.key]


async def test_a_full_memory_keeps_no_answers(bench: Bench) -> None:
    """The job ends; its answer is not worth running over the limit for."""
    if bench.door is None:
        pytest.skip("the fake has no memory limit")
    await keep(bench, "a", "k1")
    claim = await bench.run("b")
    used = next(
        line for line in (await bench.door.ask("INFO", "memory")).split(b"\r\n") if line.startswith(b"used_memory:")
    )
    await bench.door.ask("CONFIG", "SET", "maxmemory", int(used.split(b":")[1]) // 2)
    try:
        end = Settlement("b", claim.token, "done", encode_result(Result(request_id="b")), Kept("k2", b"v", LABELS))
        assert await bench.queue.settle([end]) == [OK]
        assert [(await ask(bench.queue, key)).key for key in ("k1", "k2")] == ["k1", ""]
    finally:
        await bench.door.ask("CONFIG", "SET", "maxmemory", 0)
