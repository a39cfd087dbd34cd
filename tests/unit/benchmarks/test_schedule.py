"""The schedule benchmark: its simulated workers against arithmetic by hand and queueing theory."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from benchmarks.schedule_policies import LeastConnections, Ours, Patient, Policy, simulate
from benchmarks.schedule_trace import Job
from benchmarks.schedule_world import MIDDLE, YIELD_LIMIT_S, Kind, capacity_hz, cluster
from metamusesd.job import Priority

N, L, C = Priority.NORMAL, Priority.LOW, Priority.CRITICAL
ONE = Kind("one", 0.02, 0.002, 2000.0, 1, 1)


@pytest.mark.parametrize("policy", [LeastConnections, Ours])
def test_one_job_alone(policy: type[Policy]) -> None:
    """1 000 prompt tokens at 2 000/s, then 100 steps of 22 ms (the first token comes with the prompt)."""
    (run,) = simulate(policy, [Job(0, 1.0, N, "", 1000, 101)], [MIDDLE], 1)
    assert run.ttft_s == pytest.approx(0.5)
    assert run.e2e_s == pytest.approx(0.5 + 100 * 0.022)


def test_two_jobs_share_steps_and_prompts_follow_each_other() -> None:
    """Second prompt beside one stream: 1.2/2.2 of the time for it; meanwhile the stream gets 1/2.2 of its rate."""
    first, second = simulate(
        LeastConnections, [Job(0, 0.0, N, "", 1000, 101), Job(1, 0.0, N, "", 1000, 101)], [MIDDLE], 1
    )
    assert first.ttft_s == pytest.approx(0.5)
    prompt2 = 0.5 * 2.2 / 1.2
    assert second.ttft_s == pytest.approx(0.5 + prompt2)
    done = prompt2 / 0.022 / 2.2  # tokens that the first has by then
    both = (100 - done) * 0.024
    assert first.e2e_s == pytest.approx(0.5 + prompt2 + both)
    assert second.e2e_s == pytest.approx(0.5 + prompt2 + both + done * 0.022)


def test_a_critical_job_takes_the_only_slot_and_gives_it_back() -> None:
    """The reserve slot holds the low job meanwhile; nothing of it is computed twice."""
    low, high = simulate(Ours, [Job(0, 0.0, L, "", 2, 101), Job(1, 1.0, C, "", 2, 21)], [ONE], 1)
    assert high.ttft_s == pytest.approx(0.001)
    assert high.e2e_s == pytest.approx(0.001 + 20 * 0.022)
    assert low.e2e_s == pytest.approx(0.001 + 100 * 0.022 + high.e2e_s)


def test_a_lower_class_yields_for_as_long_as_the_limit() -> None:
    """With a slot for both, the low job stands still for the limit, then runs along; with a longer one, to the end."""
    jobs = [Job(0, 0.0, L, "", 2, 101), Job(1, 1.0, C, "", 2, 51)]
    kind = Kind("two", 0.02, 0.002, 2000.0, 2, 1)
    patient, _ = simulate(Patient, jobs, [kind], 1)
    assert patient.e2e_s == pytest.approx(0.001 + 100 * 0.022 + 0.001 + 50 * 0.022)
    low, _ = simulate(Ours, jobs, [kind], 1)
    assert 0.001 + 100 * 0.022 + YIELD_LIMIT_S < low.e2e_s < patient.e2e_s


def test_one_slot_is_an_mm1_queue() -> None:
    """One slot, exponential service: the mean time in an M/M/1 at 70 % is 1 / (mu - lambda)."""
    dice = random.Random(3)
    at, jobs = 0.0, []
    for n in range(20_000):
        at += dice.expovariate(0.7)
        jobs.append(Job(n, at, N, "", 1, 1 + max(0, round(dice.expovariate(1) * 1000))))
    kind = Kind("mm1", 0.001, 0.0, 1e9, 1, 0)
    for policy in (LeastConnections, Ours):
        runs = simulate(policy, jobs, [kind], 1)
        assert statistics.mean(r.e2e_s for r in runs) == pytest.approx(1 / 0.3, rel=0.15)


def test_four_slots_are_an_mm4_queue() -> None:
    """4 workers of one slot under ours is an M/M/4: Erlang C."""
    dice = random.Random(5)
    at, jobs = 0.0, []
    for n in range(20_000):
        at += dice.expovariate(0.8 * 4)
        jobs.append(Job(n, at, N, "", 1, 1 + max(0, round(dice.expovariate(1) * 1000))))
    kind = Kind("mm1", 0.001, 0.0, 1e9, 1, 0)
    a = 3.2
    erlang = a**4 / 24 / (1 - 0.8)
    waits = erlang / (sum(a**k / math.factorial(k) for k in range(4)) + erlang)
    runs = simulate(Ours, jobs, [kind] * 4, 1)
    assert statistics.mean(r.e2e_s for r in runs) == pytest.approx(1 + waits / (4 - 3.2), rel=0.06)


def test_full_workers_do_what_the_capacity_says() -> None:
    """A heap of jobs at once: the last is done after about jobs / capacity."""
    jobs = [Job(n, 0.0, N, "", 400, 200) for n in range(4000)]
    kinds = cluster(4)
    runs = simulate(Ours, jobs, kinds, 1)
    rate = capacity_hz(kinds, 400, 200)
    third = sorted(r.done_s for r in runs)[3000]
    assert 3000 / third == pytest.approx(rate, rel=0.05)
