"""Answers with a flaw, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from metamusesd.dispatcher.escalation import tiers_up
from metamusesd.dispatcher.flaws import flaw
from metamusesd.dispatcher.router import RoutingRules
from metamusesd.job import parse_request
from metamusesd.queues.base import Service
from metamusesd.route import Route
from metamusesd.wire import Finished, Frame, Token
from tests.unit.dispatcher.stage import PlayedWorker, Stage

LOOP = "and so on " * 60
PROSE = (
    "Rome grew from a village on the Tiber into a city that ruled three continents, lost them one after another, and "
    "left its laws, roads and language to those who came after; nobody has agreed since on why it fell, or when."
)


def request(**fields: Any) -> Any:
    return parse_request({"user_query": "hi", **fields})


@pytest.mark.parametrize(
    ("content", "fields", "says"),
    [
        (PROSE, {}, ""),
        ("Paris.", {}, ""),
        ("", {}, "empty"),
        (" \n ", {}, "empty"),
        (LOOP, {}, "repeated itself"),
        (PROSE + " the end." * 80, {}, "repeated itself"),
        ("ha " * 20, {}, ""),  # short enough to be meant
        (PROSE + " " * 600 + "x", {}, ""),
        ("", {"params": {"grammar": 'root ::= ""'}}, ""),
        ('{"a": 1}', {"params": {"json_schema": {"type": "object"}}}, ""),
        ('{"a": 1', {"params": {"json_schema": {"type": "object"}}}, "not the JSON"),
        ("[" + "1," * 200 + "1]", {"params": {"json_schema": {"type": "array"}}}, ""),
        (LOOP, {"params": {"grammar": 'root ::= "x"'}}, ""),
    ],
)
def test_flaws(content: str, fields: dict[str, Any], says: str) -> None:
    """What a small model does when it is lost is seen; what is short, constrained or plain prose is let be."""
    found = flaw(content, request(**fields), None, 0.0)
    assert says in found and bool(says) == bool(found)


def test_an_improbable_answer() -> None:
    """Only where a bar is set, and the log-probabilities are there."""
    unsure = [{"token": "a", "logprob": -3.0}, {"token": "b", "logprob": -2.0}]
    assert "-2.50" in flaw("ab", request(), unsure, -2.0)
    assert (
        flaw("ab", request(), unsure, -2.6)
        == flaw("ab", request(), unsure, 0.0)
        == flaw("ab", request(), None, -2.0)
        == ""
    )


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage(routing=RoutingRules(escalate=True))
    yield stage
    await stage.close()


async def say(worker: PlayedWorker, text: str, reason: str = "stop") -> None:
    """The next order is answered with this text."""
    [order] = await worker.orders()
    tokens = [Token(order.handle, text, 3, True)] if text else []
    await worker.send(Frame.EVENTS, [*tokens, Finished(order.handle, reason, completion_tokens=3)])


async def test_a_flawed_answer_is_tried_a_tier_up(stage: Stage) -> None:
    """Once, unburnt; readers start again, the result tells both tiers and why, and the second answer stands."""
    small, large = await stage.worker(), await stage.worker(row=1, tier="heavy")
    id = await stage.submit()
    await say(small, LOOP)
    await say(large, LOOP + "but better")
    result = await stage.ended(id)
    assert (result.state, result.content, result.tier, result.attempt) == ("done", LOOP + "but better", "heavy", 1)
    assert result.route is not None and result.route.requested_tier == "fast"
    assert result.route.escalated == "fast: the answer repeated itself"
    kinds = [kind for kind, _ in await stage.kinds(id)]
    assert kinds == ["started", "token", "restarted", "started", "token", "done"]
    again = await stage.submit()
    await say(small, "")
    await say(large, "")
    assert (await stage.ended(again)).content == ""


@pytest.mark.parametrize(
    "body",
    [
        {"user_query": "hi", "tier": "fast"},
        {"user_query": "hi", "tier_policy": "strict"},
        {"user_query": "hi", "on_restart": "fail"},
        {"user_query": "hi", "params": {"ignore_eos": True}},
    ],
)
async def test_who_does_not_want_it_keeps_the_first_answer(stage: Stage, body: dict[str, Any]) -> None:
    """A forced tier, a strict policy, a stream that must not start again, a measurement."""
    small, _ = await stage.worker(), await stage.worker(row=1, tier="heavy")
    id = await stage.submit(json.dumps(body).encode())
    await say(small, LOOP)
    assert (await stage.ended(id)).content == LOOP


async def test_a_cut_answer_is_no_flaw(stage: Stage) -> None:
    """By its own bound: a heavier tier would be cut as well."""
    small, _ = await stage.worker(), await stage.worker(row=1, tier="heavy")
    id = await stage.submit()
    await say(small, LOOP, "length")
    assert (await stage.ended(id)).tier == "fast"


async def test_a_tier_without_workers_is_no_help(stage: Stage) -> None:
    """The flawed answer stands, instead of waiting for a tier that may never come."""
    small = await stage.worker()
    id = await stage.submit()
    await say(small, LOOP)
    assert (await stage.ended(id)).tier == "fast"


def test_a_specialist_is_helped_by_the_heaviest_alone() -> None:
    """Never by a lighter tier, whatever the policy accepts."""
    every = Route(tiers=("math", "heavy", "medium", "fast"), policy="degrade_ok")
    assert tiers_up("math", every) == ("heavy",)
    assert tiers_up("math", Route(tiers=("math", "medium"))) == ()
    assert tiers_up("fast", every) == ("medium", "heavy")
    assert tiers_up("heavy", every) == ()


async def test_what_nobody_has_read_may_start_again(stage: Stage) -> None:
    """`on_restart: fail` protects readers; an empty answer had none."""
    small, large = await stage.worker(), await stage.worker(row=1, tier="heavy")
    id = await stage.submit(b'{"user_query":"hi","on_restart":"fail"}')
    await say(small, "")
    await say(large, "Hello.")
    assert (await stage.ended(id)).content == "Hello."


async def test_there_must_be_time_for_it(stage: Stage) -> None:
    """When no heavier tier could keep the deadline, the flawed answer is better than none."""
    small, _ = await stage.worker(), await stage.worker(row=1, tier="heavy")
    stage.dispatcher.outlook.forecast.tiers["heavy"].runs.extend([(30.0, 3)] * 20)
    stage.dispatcher.outlook.hosts.own["heavy"] = Service("h", free=4, start_hz=1.0)
    id = await stage.submit(deadline_ms=10_000)
    await say(small, "")
    assert (await stage.ended(id)).tier == "fast"


async def test_nobody_escalates_unasked() -> None:
    """[routing] escalate = false."""
    stage = Stage()
    small, _ = await stage.worker(), await stage.worker(row=1, tier="heavy")
    id = await stage.submit()
    await say(small, LOOP)
    assert (await stage.ended(id)).tier == "fast"
    await stage.close()
