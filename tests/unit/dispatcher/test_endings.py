"""How a run ended, and what is written about it: a pure table."""

from __future__ import annotations

import asyncio
import json

import pytest

from metamusesd.dispatcher.endings import MOST_KILLS, Retries, conclude
from metamusesd.dispatcher.run import Back, End, Lost, Run
from metamusesd.errors import ContextOverflow, EngineFailed
from metamusesd.job import decode_result
from metamusesd.queues.base import Claim, Fault, Requeue, Settlement, Verdict
from metamusesd.route import Route, encode_route
from metamusesd.wire import Finished, Refused, Token

RETRIES = Retries(most=3, first_s=0.5, longest_s=1.5)


def make_run(body: bytes = b'{"user_query":"hi"}', attempt: int = 1, said: str = "", retries: int = 0) -> Run:
    route = encode_route(Route(tiers=("fast",), reason="test"))
    claim = Claim("j", "t:1", "fast", 1, attempt, 0, body, route, "default", True, 1000, 0, 1250, retries)
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
    outcome = conclude(make_run(), end, 10, RETRIES)
    assert isinstance(outcome, Settlement)
    assert outcome.state == decode_result(outcome.result).state == state


@pytest.mark.parametrize(
    ("end", "fault", "reason"),
    [
        (Lost(crashed=True), Fault.CRASH, "worker_died"),
        (Lost(crashed=True, reason="hung"), Fault.CRASH, "hung"),
        (Lost(crashed=False, reason="worker_killed", killed=True), Fault.KILLED, "worker_killed"),
        (Lost(crashed=False, reason="lost"), Fault.NONE, "lost"),
        (Refused(1), Fault.NONE, "no_capacity"),
        (Back("drain"), Fault.NONE, "drain"),
        (Finished(1, error=EngineFailed().to_dict()), Fault.ERROR, "engine_failed"),
    ],
)
def test_gives_back(end: End, fault: Fault, reason: str) -> None:
    """These ends give the job back; only a death of the worker's own counts as a crash, only an error as a retry."""
    outcome = conclude(make_run(), end, 10, RETRIES)
    assert isinstance(outcome, Requeue)
    assert (outcome.fault, outcome.reason) == (fault, reason)


@pytest.mark.parametrize(("retries", "longest_ms"), [(0, 500), (1, 1000), (2, 1500)])
def test_a_retry_waits_longer_each_time(retries: int, longest_ms: int) -> None:
    """Doubled by every retry (attempts for other reasons do not count), bounded, with jitter."""
    error = Finished(1, error=EngineFailed("no").to_dict())
    outcomes = [conclude(make_run(attempt=9, retries=retries), error, 10, RETRIES) for _ in range(50)]
    delays = {outcome.delay_ms for outcome in outcomes if isinstance(outcome, Requeue)}
    assert len(delays) > 1
    assert longest_ms / 2 <= min(delays) <= max(delays) <= longest_ms


def test_after_the_last_retry_the_error_is_the_job_s() -> None:
    """The error after max_retries is final."""
    outcome = conclude(make_run(retries=3), Finished(1, error=EngineFailed("no").to_dict()), 10, RETRIES)
    assert isinstance(outcome, Settlement)
    error = decode_result(outcome.result).error
    assert error is not None
    assert error["code"] == "engine_failed"


def test_a_crash_leaves_evidence() -> None:
    """What the supervisor says of the worker, and what this job did in it: one JSON object."""
    run = make_run(b'{"user_query":"hi you","context":[{"role":"user","content":"abc"}]}', said="Hel", attempt=2)
    run.alone, run.neighbours = True, 0
    told = {"worker": "fast-0", "pid": 7, "how": "signal 11 (SIGSEGV)", "phase": "prefill", "stacks": "fast-0-1"}
    outcome = conclude(run, Lost(crashed=True, evidence=told), 10, RETRIES)
    assert isinstance(outcome, Requeue)
    assert outcome.fault is Fault.CRASH_ALONE
    evidence = json.loads(outcome.evidence)
    assert evidence.pop("at_ms") > 1_600_000_000_000
    assert evidence == {
        "worker": "fast-0", "pid": 7, "how": "signal 11 (SIGSEGV)", "phase": "decode", "attempt": 2, "prompt_chars": 9,
        "prompt_tokens": len(run.claim.body) // 4, "tokens": 1, "neighbours": 0, "alone": True,
        "stacks": "fast-0-1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("phase", "seen"),
    [("preparing", "preparing"), ("taking jobs", "taking jobs"), ("decode", "prefill"), ("", "prefill")],
)
def test_the_phase_is_the_job_s(phase: str, seen: str) -> None:
    """A job without a token was not in decode, whatever its worker did for others."""
    outcome = conclude(make_run(b"{garbage"), Lost(crashed=True, evidence={"phase": phase}), 10, RETRIES)
    assert isinstance(outcome, Requeue)
    assert json.loads(outcome.evidence)["phase"] == seen


@pytest.mark.parametrize("verdict", [Verdict.CANCELLED, Verdict.LOST])
def test_who_lost_it_writes_nothing(verdict: Verdict) -> None:
    """Somebody else has decided."""
    assert conclude(make_run(), verdict, 10, RETRIES) is None


def test_no_restart_after_the_first_token_when_asked() -> None:
    """`on_restart: fail`: a stream that was seen does not begin again; one that was not, may."""
    body = b'{"user_query":"hi","on_restart":"fail"}'
    seen = conclude(make_run(body, said="Hel"), Lost(crashed=True), 10, RETRIES)
    assert isinstance(seen, Settlement)
    error = decode_result(seen.result).error
    assert error is not None
    assert error["code"] == "worker_lost"
    assert isinstance(conclude(make_run(body), Lost(crashed=True), 10, RETRIES), Requeue)


def test_the_result_tells_everything() -> None:
    """Content, usage, route, attempt and timings are in the result."""
    run = make_run(said="Hello", attempt=2)
    end = Finished(1, "stop", prompt_tokens=3, completion_tokens=1, cached_tokens=2)
    outcome = conclude(run, end, run.claimed_ns + 5_000_000, RETRIES)
    assert isinstance(outcome, Settlement)
    result = decode_result(outcome.result)
    assert (result.content, result.attempt, result.finish_reason) == ("Hello", 2, "stop")
    assert (result.usage.prompt_tokens, result.usage.cached_tokens, result.tokens_generated) == (3, 2, 1)
    assert result.route is not None
    assert result.route.tiers == ("fast",)
    assert (result.timings.queue_ms, result.timings.total_ms) == (250, 255)


@pytest.mark.parametrize(("attempt", "fault"), [(MOST_KILLS, Fault.KILLED), (MOST_KILLS + 1, Fault.CRASH)])
def test_who_is_killed_again_and_again_is_no_victim(attempt: int, fault: Fault) -> None:
    """A job under which worker after worker is killed from outside is blamed in the end."""
    lost = Lost(crashed=False, reason="worker_killed", killed=True)
    outcome = conclude(make_run(attempt=attempt), lost, 10, Retries())
    assert isinstance(outcome, Requeue) and outcome.fault is fault
