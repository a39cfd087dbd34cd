"""Stages 4, 5 and 10 with the memory queue: hits, misses, flights and what is learnt; the vectors process is played."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from metamusesd.cache.base import Entry, decode_entry, encode_entry
from metamusesd.dispatcher.caching import Rules
from metamusesd.errors import DeadlineUnmeetable
from metamusesd.job import Answer, encode_answer
from metamusesd.wire import Complain, Finished, Found, Frame, Keep, Look, Token, Withdraw
from tests.unit.dispatcher.stage import PlayedWorker, Stage

RULES = Rules(enabled=True, semantic=True, coalesce=True, exact_domains=frozenset({"code"}), budget_ms=2000)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage(rules=RULES)
    yield made
    await made.close()


KINGS = [
    "Romulus",
    "Numa",
    "Tullus",
    "Ancus",
    "Priscus",
    "Servius",
    "Tarquin",
    "Brutus",
    "Camillus",
    "Cato",
    "Marius",
    "Sulla",
    "Caesar",
]


def body(query: str = "What is the capital of France?", **more: Any) -> bytes:
    return json.dumps({"user_query": query, **more}).encode()


def miss(look: Look) -> Found:
    return Found(look.handle, "miss")


async def answer(worker: PlayedWorker, text: str = "Paris.", reason: str = "stop") -> str:
    """Let the worker answer its next order; the order's job."""
    [order] = await worker.orders()
    await worker.send(Frame.EVENTS, [Token(order.handle, text, 2, True), Finished(order.handle, reason, None, 9, 2)])
    return order.id


async def computed(stage: Stage, worker: PlayedWorker, raw: bytes, text: str = "Paris.") -> None:
    id = await stage.submit(raw)
    assert await answer(worker, text) == id
    assert not (await stage.ended(id)).from_cache


async def test_an_equal_question_is_answered_from_the_exact_cache(stage: Stage) -> None:
    """Without embedder and vectors; with its note, its usage and a stream of its own."""
    worker = await stage.worker()
    await computed(stage, worker, body())
    id = await stage.submit(body("  What is the capital of France? "))
    result = await stage.ended(id)
    assert (result.content, result.from_cache, result.tier, result.usage.prompt_tokens) == ("Paris.", True, "fast", 9)
    assert result.cache is not None and (result.cache.kind, result.cache.score) == ("exact", 1.0)
    assert result.finish_reason == "stop" and result.tokens_generated == 2
    assert [event.kind for event in await stage.queue.events(id)] == ["started", "token", "done"]


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "other"}, {"muse_id": 7}, {"persona": "You are Ada."}, {"personality_traits": {"humor": 3}},
        {"params": {"temperature": 0.1}}, {"params": {"seed": 3}}, {"params": {"json_schema": {"type": "object"}}},
        {"context": [{"role": "user", "content": "hi"}]}, {"tier": "heavy"},
        {"user_query": "what is the capital of france?"},
    ],
)  # fmt: skip
async def test_nothing_crosses_a_wall(stage: Stage, other: dict[str, Any]) -> None:
    """Another tenant, muse, persona, parameter, context, model or spelling: computed anew."""
    worker, heavy = await stage.worker(), await stage.worker(row=1, tier="heavy")
    await computed(stage, worker, body())
    id = await stage.submit(body(**other))
    player = heavy if "tier" in other else worker
    assert await answer(player) == id


@pytest.mark.parametrize("reason", ["length", "cancelled", "error", "empty"])
async def test_what_is_not_a_whole_answer_is_not_kept(stage: Stage, reason: str) -> None:
    """Cut, failed and empty answers are never given again."""
    worker = await stage.worker()
    vectors = await stage.play_vectors(miss)
    id = await stage.submit(body())
    [order] = await worker.orders()
    error = {"code": "internal_error", "message": "x", "retryable": False} if reason == "error" else None
    text = "" if reason == "empty" else "Par"
    ending = Finished(order.handle, {"error": "", "empty": "stop"}.get(reason, reason), error)
    if reason == "cancelled":
        await stage.queue.cancel(id)
        stage.dispatcher.ask(0)
        await worker.cancels()
    else:
        await worker.send(Frame.EVENTS, [Token(order.handle, text, 1, True), ending])
        await stage.ended(id)
    if reason != "cancelled":  # a follower may lead the flight then, and keep its promise
        await vectors.told(Withdraw)
    assert await stage.queue.kept() == (0, 0) and not [each for each in vectors.heard if type(each) is Keep]
    again = await stage.submit(body())
    assert await answer(worker) == again


async def test_a_semantic_hit(stage: Stage) -> None:
    """The vectors process has an entry: its answer, with score, age and name."""
    await stage.worker()
    kept = Entry(id="e1", partition="p", query="q", answer=encode_answer(Answer(content="Paris!", created_ms=1)))
    await stage.play_vectors(lambda look: Found(look.handle, "hit", 0.97, "same", encode_entry(kept)))
    result = await stage.ended(await stage.submit(body()))
    assert (result.content, result.from_cache) == ("Paris!", True)
    assert result.cache is not None
    assert (result.cache.kind, result.cache.score, result.cache.entry) == ("semantic", 0.97, "e1")
    assert result.cache.age_s > 1


async def test_a_refused_neighbour_is_named_in_the_result(stage: Stage) -> None:
    """The job is computed, and says what was near and why it did not do."""
    worker = await stage.worker()
    vectors = await stage.play_vectors(lambda look: Found(look.handle, "miss", 0.98, "antonym: hot/cold"))
    id = await stage.submit(body())
    await answer(worker)
    note = (await stage.ended(id)).cache
    assert note is not None and (note.kind, note.score, note.reason) == ("miss", 0.98, "antonym: hot/cold")
    [keep] = await vectors.told(Keep)
    entry = decode_entry(keep.entry)
    assert entry.query == "What is the capital of France?" and entry.expires_ms - entry.created_ms == RULES.ttl_ms
    [look] = await vectors.told(Look)
    assert entry.partition in look.partitions and keep.promises == look.promises


async def test_equal_jobs_are_computed_once(stage: Stage) -> None:
    """Fifty at a time: one order; with `write: false` or a wish for a new answer, each its own."""
    worker = await stage.worker(slots=64)
    ids = [await stage.submit(body()) for _ in range(50)]
    assert await answer(worker) == ids[0]
    results = [await stage.ended(id) for id in ids]
    assert [result.request_id for result in results] == ids and {result.content for result in results} == {"Paris."}
    assert sum(result.from_cache for result in results) == 49
    alone = [await stage.submit(body("Who was Ada?", cache={"write": False})) for _ in range(2)]
    assert {order.id for order in await worker.orders(2)} == set(alone)


async def test_a_job_that_only_means_the_same_follows_the_one_under_way(stage: Stage) -> None:
    """The vectors process knows the promise of the first; the second is its follower."""
    worker = await stage.worker()
    promises: list[Look] = []

    def promised(look: Look) -> Found:
        promises.append(look)
        return miss(look) if len(promises) == 1 else Found(look.handle, "flight", 0.96, "same", promises[0].promise)

    await stage.play_vectors(promised)
    first = await stage.submit(body())
    [order] = await worker.orders()
    second = await stage.submit(body("What's the capital city of France?"))
    await stage.state(second, "following")
    await worker.send(Frame.EVENTS, [Token(order.handle, "Paris.", 2, True), Finished(order.handle, "stop")])
    assert (await stage.ended(first)).content == (await stage.ended(second)).content == "Paris."


async def test_the_same_user_again_gets_a_new_answer(stage: Stage) -> None:
    """Within minutes, from the same address; another user gets the kept one."""
    worker = await stage.worker()
    await computed(stage, worker, body(user_address="u1"))
    await computed(stage, worker, body(user_address="u1"), "Paris, of course.")
    other = await stage.ended(await stage.submit(body(user_address="u2")))
    assert (other.from_cache, other.content) == (True, "Paris, of course.")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (body("What is the weather like today?"), "depends on the time"),
        (body("What is my balance?"), "own state"),
        (body("Tell me another joke"), "something new"),
        (body(cache={"read": False, "write": False}), "wants no cache"),
        (body(params={"logprobs": 1}), "this very run"),
        (b'{"messages": [{"role": "tool", "content": "x"}, {"role": "user", "content": "Who was Ada?"}]}', "tools"),
    ],
)  # fmt: skip
async def test_what_is_not_eligible_is_neither_read_nor_kept(stage: Stage, raw: bytes, reason: str) -> None:
    """The result says why."""
    worker = await stage.worker()
    vectors = await stage.play_vectors(miss)
    for _ in range(2):
        id = await stage.submit(raw)
        assert await answer(worker) == id
        note = (await stage.ended(id)).cache
        assert note is not None and note.kind == "off" and reason in note.reason
    assert await stage.queue.kept() == (0, 0) and vectors.heard == []


async def test_code_hits_only_when_it_is_equal(stage: Stage) -> None:
    """A domain of exact_domains never asks the semantic cache."""
    worker = await stage.worker(tier="heavy")
    vectors = await stage.play_vectors(miss)
    question = body("Write a python function that sorts a list")
    await computed(stage, worker, question)
    assert (await stage.ended(await stage.submit(question))).from_cache
    assert not [each for each in vectors.heard if type(each) in (Look, Keep)]


async def test_nobody_waits_longer_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent vectors process: misses, then it is not asked any more; gone: not asked at all."""
    monkeypatch.setattr("metamusesd.dispatcher.breaker.MOMENT_S", 0.0)
    stage = Stage(rules=Rules(enabled=True, semantic=True, coalesce=False, budget_ms=5))
    worker = await stage.worker()
    vectors = await stage.play_vectors(lambda look: None)
    for number in range(8):
        id = await stage.submit(body(f"Who was {KINGS[number]}?"))
        assert await answer(worker) == id
        note = (await stage.ended(id)).cache
        assert note is not None and note.kind == "miss"
    assert len([each for each in vectors.heard if type(each) is Look]) == 5
    assert stage.dispatcher.vectors.breaker.is_open
    await vectors.close()
    stage.vectors.clear()
    id = await stage.submit(body("Who was the last king of Rome?"))
    assert await answer(worker) == id
    assert stage.lost_pipes == [vectors.epoch]
    await stage.close()


async def test_a_pipe_that_breaks_in_a_lookup_is_a_miss(stage: Stage) -> None:
    """EOF while jobs wait for its answer: they go on at once."""
    worker = await stage.worker()
    vectors = await stage.play_vectors(lambda look: None)
    id = await stage.submit(body())
    await vectors.told(Look)
    await vectors.close()
    stage.vectors.clear()
    assert await answer(worker) == id


async def test_spoilt_answers_are_misses(stage: Stage) -> None:
    """What is no answer of ours, in either cache, is not given to anybody."""
    worker = await stage.worker()
    await stage.play_vectors(lambda look: Found(look.handle, "hit", 0.99, "", encode_entry(
        Entry(id="e", partition="p", query="q", answer=b"not json"))))  # fmt: skip
    await computed(stage, worker, body())
    kept, until_ms = next(iter(stage.queue._shelf.kept.values()))
    stage.queue._shelf.kept[kept.key] = type(kept)(kept.key, b"\xff"), until_ms
    await computed(stage, worker, body())


async def test_a_drain_waits_for_lookups(stage: Stage) -> None:
    """A job that is being looked up is given back, unburnt."""
    await stage.worker()
    vectors = await stage.play_vectors(lambda look: None)
    id = await stage.submit(body())
    await vectors.told(Look)
    draining = asyncio.get_running_loop().create_task(stage.dispatcher.drain(5))
    await asyncio.sleep(0)
    stage.dispatcher.vectors.close()
    await asyncio.wait_for(draining, 5)
    view = await stage.queue.view(id)
    assert view is not None and (view.state, view.attempt) == ("queued", 1)


async def test_a_higher_class_lifts_the_job_that_it_follows(stage: Stage) -> None:
    """In the worker, too."""
    worker = await stage.worker()
    await stage.submit(body(), priority=0)
    [order] = await worker.orders()
    urgent = await stage.submit(body(), priority=3)
    await stage.state(urgent, "following")
    stage.dispatcher.ask(0)
    frame, payload = await asyncio.wait_for(worker._frames.get(), 5)
    assert (frame, payload) == (Frame.RAISE, [(order.handle, 3)])
    link = stage.workers and stage.dispatcher.fleet.ready["fast"][0]
    assert link and link.load.by_class == [0, 0, 0, 1]


async def test_complaints_reach_the_vectors_process(stage: Stage) -> None:
    """What a producer reported as wrong."""
    from metamusesd.dispatcher.rounds import Rounds

    await stage.worker()
    kept = Entry(id="e1", partition="p", query="q", answer=encode_answer(Answer(content="Paris!", created_ms=1)))
    vectors = await stage.play_vectors(lambda look: Found(look.handle, "hit", 0.97, "same", encode_entry(kept)))
    id = await stage.submit(body())
    await stage.ended(id)
    assert await stage.queue.complain(id) == "noted"
    await Rounds(stage.dispatcher, stage.queue, "host:1", ["fast"], 15_000, 30.0)._pass_complaints()
    assert await vectors.told(Complain) == [Complain("e1", 0.97)]


async def test_a_process_that_dies_under_the_trial_question_is_asked_again_in_its_next_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The breaker is open, one question tries, the process is killed: its successor starts with a clean record."""
    monkeypatch.setattr("metamusesd.dispatcher.breaker.MOMENT_S", 0.0)
    monkeypatch.setattr("metamusesd.dispatcher.breaker.FIRST_S", 0.0)
    stage = Stage(rules=Rules(enabled=True, semantic=True, coalesce=False, budget_ms=5))
    worker = await stage.worker()
    vectors = await stage.play_vectors(lambda look: None)
    link = stage.dispatcher.vectors
    number = 0
    while not link.breaker.is_open:
        number += 1
        await stage.submit(body(f"Who was {KINGS[number]}?"))
        await answer(worker)
    link._budget_s = 60.0
    trial = await stage.submit(body("Who was the last king of Rome?"))
    await vectors.told(Look, number + 1)
    assert not link.may_ask()
    await vectors.close()
    stage.vectors.clear()
    assert await answer(worker) == trial
    await stage.play_vectors(miss)
    assert link.may_ask()
    await stage.close()


async def test_a_mistake_of_ours_costs_a_hit_and_no_job(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a lookup, in one job's answer of many, and while an answer is kept: every job is done."""
    worker = await stage.worker()

    async def broken(asks: Any) -> Any:
        raise RuntimeError("recall")

    monkeypatch.setattr(stage.queue, "recall", broken)
    monkeypatch.setattr("metamusesd.dispatcher.keeping.question_of", lambda request: 1 / 0)
    await stage.play_vectors(lambda look: Found(look.handle, "hit", 0.99, "", b"no entry"))
    ids = [await stage.submit(body(f"Who was {KINGS[number]}?")) for number in range(3)]
    orders = await worker.orders(3)
    assert {order.id for order in orders} == set(ids)
    said = [(Token(order.handle, "x", 1, True), Finished(order.handle, "stop")) for order in orders]
    await worker.send(Frame.EVENTS, [event for pair in said for event in pair])
    assert [(await stage.ended(id)).state for id in ids] == ["done"] * 3
    await asyncio.wait_for(stage.dispatcher.lookup.answered(), 5)


async def test_a_hit_needs_no_place_and_no_time(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose deadline no worker could keep is answered from the cache; another one is refused."""
    worker = await stage.worker()
    await computed(stage, worker, body())

    def too_late(*_: Any) -> None:
        raise DeadlineUnmeetable("too late", retry_after_s=1.0)

    monkeypatch.setattr(stage.dispatcher.outlook, "check", too_late)
    assert (await stage.ended(await stage.submit(body(), deadline_ms=1000))).from_cache
    refused = await stage.ended(await stage.submit(body("Who was Ada?"), deadline_ms=1000))
    assert refused.error is not None and refused.error["code"] == "deadline_unmeetable"


async def test_a_tier_whose_model_nobody_knows_yet_flies_with_nobody(stage: Stage) -> None:
    """A job for (fast, heavy) may be answered by heavy's model; one that demands fast must not get that answer."""
    worker = await stage.worker(slots=8)
    both, only = await stage.submit(body()), await stage.submit(body(tier="fast"))
    assert {order.id for order in await worker.orders(2)} == {both, only}


async def test_two_models_of_one_tier_keep_their_answers_apart(stage: Stage) -> None:
    """While workers are replaced by ones with another model, each answer is its own model's."""
    old = await stage.worker()
    await computed(stage, old, body())
    identities = stage.dispatcher.identities
    before = identities.own("fast")
    [link] = stage.dispatcher.fleet.ready["fast"]
    assert link.hello is not None
    newer = msgspec.structs.replace(link.hello, digest="sha256:new")
    identities.changed("fast", [link.hello, newer])
    assert len(identities.own("fast")) == 2 and identities.own("fast")[0] == before[0]
    identities.changed("fast", [])
    assert len(identities.own("fast")) == 2
    identities.changed("fast", [newer])
    assert before[0] not in identities.own("fast")
    dated = msgspec.structs.replace(newer, template_digest="dated:sha256:t")
    assert identities.of_worker(dated) != identities.of_worker(newer)
