"""How a run ended, and what is written about it: a pure table."""

from __future__ import annotations

import asyncio

import pytest

from metamusesd.dispatcher.endings import conclude
from metamusesd.dispatcher.run import Back, End, Lost, Run
from metamusesd.errors import ContextOverflow, EngineFailed
from metamusesd.job import Route, decode_result, encode_route
from metamusesd.queues.base import Claim, Requeue, Settlement, Verdict
from metamusesd.wire import Finished, Refused, Token


def make_run(body: bytes = b'{"user_query":"hi"}', attempt: int = 1, said: str = "") -> Run:
    route = encode_route(Route(tiers=("fast",), reason="test"))
    claim = Claim("j", "t:1", "fast", 1, attempt, 0, body, route, "default", True, 1000, 0, 1250)
    run = Run(claim, asyncio.new_event_loop())
    run.end.get_loop().close()
    if said:
        run.first_ns = run.claimed_ns
        run.take(Token(1, said, 1))
    return run


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (Finished(1, "stop"), "done"),
        (Finished(1, "length"), "done"),
        (Finished(1, "deadline"), "expired"),
        (Verdict.EXPIRED, "expired"),
        (Finished(1, error=ContextOverflow().to_dict()), "failed"),
    ],
)
def test_settles(end: End, state: str) -> None:
    """These ends are final."""
    outcome = conclude(make_run(), end, 10)
    assert isinstance(outcome, Settlement)
    assert outcome.state == decode_result(outcome.result).state == state


@pytest.mark.parametrize(
    ("end", "crashed", "burn"),
    [
        (Lost(crashed=True), True, False),
        (Lost(crashed=False, reason="lost"), False, False),
        (Refused(1), False, False),
        (Back("drain"), False, False),
        (Finished(1, error=EngineFailed().to_dict()), False, True),
    ],
)
def test_gives_back(end: End, crashed: bool, burn: bool) -> None:
    """These ends give the job back; only a death counts as a crash, only an error burns an attempt."""
    outcome = conclude(make_run(), end, 10)
    assert isinstance(outcome, Requeue)
    assert (outcome.crashed, outcome.burn) == (crashed, burn)


def test_a_retryable_error_is_tried_three_times() -> None:
    """The third attempt's error is the job's."""
    outcome = conclude(make_run(attempt=3), Finished(1, error=EngineFailed("no").to_dict()), 10)
    assert isinstance(outcome, Settlement)
    error = decode_result(outcome.result).error
    assert error is not None
    assert error["code"] == "engine_failed"


@pytest.mark.parametrize("verdict", [Verdict.CANCELLED, Verdict.LOST])
def test_who_lost_it_writes_nothing(verdict: Verdict) -> None:
    """Somebody else has decided."""
    assert conclude(make_run(), verdict, 10) is None


def test_no_restart_after_the_first_token_when_asked() -> None:
    """`on_restart: fail`: a stream that was seen does not begin again; one that was not, may."""
    body = b'{"user_query":"hi","on_restart":"fail"}'
    seen = conclude(make_run(body, said="Hel"), Lost(crashed=True), 10)
    assert isinstance(seen, Settlement)
    error = decode_result(seen.result).error
    assert error is not None
    assert error["code"] == "worker_lost"
    assert isinstance(conclude(make_run(body), Lost(crashed=True), 10), Requeue)


def test_the_result_tells_everything() -> None:
    """Content, usage, route, attempt and timings are in the result."""
    run = make_run(said="Hello", attempt=2)
    end = Finished(1, "stop", prompt_tokens=3, completion_tokens=1, cached_tokens=2)
    outcome = conclude(run, end, run.claimed_ns + 5_000_000)
    assert isinstance(outcome, Settlement)
    result = decode_result(outcome.result)
    assert (result.content, result.attempt, result.finish_reason) == ("Hello", 2, "stop")
    assert (result.usage.prompt_tokens, result.usage.cached_tokens, result.tokens_generated) == (3, 2, 1)
    assert result.route is not None
    assert result.route.tiers == ("fast",)
    assert (result.timings.queue_ms, result.timings.total_ms) == (250, 255)
