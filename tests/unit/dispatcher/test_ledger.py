"""What the dispatcher counts: how many jobs it holds, where they went, how they ended."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import cast

import pytest

from metamusesd.board import Board
from metamusesd.dispatcher.ledger import Ledger, tier_move
from metamusesd.dispatcher.links import Link
from metamusesd.dispatcher.run import Lost, Run
from metamusesd.log import get_logger
from metamusesd.metrics import MetricsPage
from metamusesd.queues.base import Fault, Reaped, Requeue, Settlement, Verdict
from metamusesd.route import Route, encode_route
from metamusesd.wire import Finished, Frame, Token
from tests.unit.dispatcher.stage import Stage
from tests.unit.dispatcher.test_endings import make_run


class Served:
    """A link as far as the ledger looks."""

    hello, worker = None, "w-0"

    def __init__(self, tier: str) -> None:
        self.tier = tier


@pytest.fixture
def board() -> Board:
    return Board(1)


@pytest.fixture
def page(board: Board) -> MetricsPage:
    return MetricsPage(board.metric_words)


@pytest.fixture
def ledger(board: Board) -> Ledger:
    return Ledger(board, get_logger("test"), max_crashes=2)


def run_of(requested: str | None, served: str = "", *, crashes: int = 0) -> Run:
    run = make_run()
    route = Route(tiers=("fast", "medium", "heavy"), requested_tier=requested)
    run.claim = replace(run.claim, route=encode_route(route), crashes=crashes)
    run.link = cast(Link, Served(served)) if served else None
    return run


@pytest.mark.parametrize(
    ("wanted", "served", "move"),
    [
        ("fast", "fast", ""),
        ("fast", "heavy", "upgrade"),
        ("heavy", "medium", "downgrade"),
        ("math", "heavy", "sideways"),
        ("fast", "code", "sideways"),
        ("", "fast", ""),
    ],
)
def test_moves_between_tiers_have_a_name(wanted: str, served: str, move: str) -> None:
    """Upwards and downwards among the general ones, sideways to or from a specialist."""
    assert tier_move(wanted, served) == move


def test_answers_are_counted_by_wanted_and_serving_tier(ledger: Ledger, page: MetricsPage) -> None:
    """A job that went a tier up is one upgrade; a route without a wish wants its best tier; a failed one is none."""
    done = Settlement("j", "t:1", "done", b"{}")
    for requested, served in (("fast", "heavy"), ("fast", "fast"), (None, "medium")):
        ledger.ended(run_of(requested, served), Finished(1, "stop", completion_tokens=3), done, Verdict.OK)
    failed = Finished(1, error={"code": "engine_failed"})
    ledger.ended(run_of("fast", "heavy"), failed, Settlement("j", "t:1", "failed", b"{}"), Verdict.OK)
    served = [page.value("requests_served_total", label) for label in ("fast/heavy", "fast/fast", "fast/medium")]
    assert served == [1, 1, 1]
    assert page.value("tier_moves_total", "upgrade") == 2
    assert page.value("generation_tokens_total", "heavy") == 3
    assert (page.value("requests_total", "done"), page.value("requests_total", "failed")) == (3, 1)


def test_the_crash_that_makes_a_job_dead_is_a_dead_job(ledger: Ledger, page: MetricsPage) -> None:
    """The last crash alone; neither the one before it nor one in company."""
    for fault, crashes in ((Fault.CRASH_ALONE, 0), (Fault.CRASH, 1), (Fault.CRASH_ALONE, 1)):
        back = Requeue("j", "t:1", "worker_died", fault)
        ledger.ended(run_of("fast", "fast", crashes=crashes), Lost(crashed=True), back, Verdict.OK)
    assert page.value("requests_total", "dead") == 1
    assert (page.value("crashes_total", "crash"), page.value("crashes_total", "crash_alone")) == (1, 2)


def test_escalations_and_cancels_are_counted(ledger: Ledger, page: MetricsPage) -> None:
    """By the tier whose answer was not good enough; a cancel of a job that is held is an end like another."""
    ledger.ended(run_of("fast", "fast"), Finished(1, "stop"), Requeue("j", "t:1", "escalated"), Verdict.OK)
    ledger.ended(run_of("fast", "fast"), Verdict.CANCELLED, None, Verdict.LOST)
    assert page.value("escalations_total", "fast") == page.value("request_restarts_total", "escalated") == 1
    assert page.value("requests_total", "cancelled") == 1


def test_sweeps_are_counted_by_what_they_did(ledger: Ledger, page: MetricsPage) -> None:
    """Every kind by its own name; a deadline that passed in a queue is an end."""
    ledger.reaped(Reaped(requeued=("a",), expired=("b", "c"), timed_out=("d",), rerouted=("e",), woken=("f", "g")))
    kinds = ("requeued", "expired", "timed_out", "rerouted", "woken")
    assert [page.value("reaped_total", kind) for kind in kinds] == [1, 2, 1, 1, 2]
    assert page.value("requests_total", "expired") == 2


def test_leases_are_those_of_now(ledger: Ledger, page: MetricsPage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held by queue until a worker has the job, then by its tier; looked at once a second; gone when none is held."""
    now_ns = 10**12
    monkeypatch.setattr("metamusesd.dispatcher.ledger.time.monotonic_ns", lambda: now_ns)
    ledger.leases([run_of("fast"), run_of("fast", "heavy")])
    held = [page.value("leases_held", f"{tier}/normal") for tier in ("fast", "heavy")]
    running = [page.value("leases_running", f"{tier}/normal") for tier in ("fast", "heavy")]
    assert (held, running) == ([1, 1], [0, 1])
    ledger.leases([])
    assert page.value("leases_held", "heavy/normal") == 1
    now_ns += 2 * 10**9
    ledger.leases([])
    assert page.value("leases_held", "heavy/normal") == page.value("leases_held", "fast/normal") == 0


async def test_a_job_is_counted_on_its_whole_way(stage: Stage) -> None:
    """Routed by domain and level, held while it runs, its gaps between tokens by tier and class."""
    page = MetricsPage(stage.board.metric_words)
    worker = await stage.worker()
    id = await stage.submit(priority=2)
    [order] = await worker.orders()
    for text in ("a", "b"):
        await worker.send(Frame.EVENTS, [Token(order.handle, text, 1)])
    await worker.send(Frame.EVENTS, [Finished(order.handle, "stop", prompt_tokens=5, completion_tokens=2)])
    assert (await stage.ended(id)).content == "ab"
    async with asyncio.timeout(5):
        await stage.dispatcher.emptied.wait()
    assert page.value("requests_routed_total", "general/simple") == 1
    assert page.value("requests_served_total", "fast/fast") == 1
    text = page.render()
    for name in ("inter_token_latency_seconds", "request_queue_time_seconds", "time_to_first_token_seconds"):
        assert f'metamusesd_{name}_count{{tier="fast",class="high"}} 1\n' in text
