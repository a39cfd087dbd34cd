"""Admission by deadline: who cannot make it is told at once, and hardly anybody is told so in vain."""

from __future__ import annotations

import random

import pytest

from metamusesd.dispatcher.admission import too_late
from metamusesd.dispatcher.forecast import LEAST_RATIOS, LEAST_RUNS, Forecast, TierForecast, raw_s
from metamusesd.queues.base import Claim
from tests.unit.dispatcher.simulated import TIER, Job, Simulation

CLAIM = Claim("a", "1:1", "ingress", 1, 1, 0, b"{}", b"", "default", True, 0, deadline_ms=10_000, claimed_ms=1_000)


def measured(factor: float = 1.0, run_s: float = 2.0) -> TierForecast:
    tier = TierForecast()
    tier.ratios.extend([factor] * LEAST_RATIOS)
    tier.runs.extend([(run_s, 100)] * LEAST_RUNS)
    tier.calibrate([])
    return tier


def admit(job: Job, forecast: Forecast, ahead: int) -> bool:
    raw = raw_s(ahead, [forecast.service(TIER, "m", 0, job.at_s)])
    return too_late(job.deadline_s, None, [(raw, forecast.tiers[TIER])], CLAIM) is None


@pytest.mark.parametrize("mix", [(0.0, 1.0, 0.0, 0.0), (0.3, 0.4, 0.2, 0.1)], ids=["one class", "four classes"])
@pytest.mark.parametrize(("load", "swing"), [(0.9, 0.5), (1.05, 0.0), (1.5, 0.0)])
def test_hardly_anybody_is_refused_in_vain(load: float, swing: float, mix: tuple[float, ...]) -> None:
    """Of the jobs that are refused at most one in ten would have made it; under overload most of the late ones are."""

    def deadline_s(rng: random.Random) -> float:
        return rng.uniform(1.0, 20.0)

    jobs = [
        job for seed in range(3)
        for job in Simulation(seed, load, mix, swing, deadline_s=deadline_s, admit=admit).run()
    ]  # fmt: skip
    refused = [job for job in jobs if job.refused]
    in_vain = sum(job.made_it for job in refused)
    late = sum(not job.made_it for job in jobs)
    print(
        f"load {load} swing {swing} mix {mix}: {len(refused)} of {len(jobs)} refused, {in_vain} of them in vain; "
        f"{late} late in all"
    )
    assert in_vain <= 0.1 * len(refused)
    assert load < 1.5 or len(refused) > 0.5 * late


def test_a_refusal_says_when_to_come_back() -> None:
    """Predicted and allowed time count from the submit; retry_after_s is how much too long the wait is."""
    error = too_late(9.0, None, [(20.0, measured())], CLAIM)
    assert error is not None
    found = error.to_dict()
    assert (found["code"], found["retryable"]) == ("deadline_unmeetable", True)
    assert (found["predicted_ms"], found["deadline_ms"], found["retry_after_s"]) == (23_000, 10_000, 13.0)


def test_an_answer_that_takes_too_long_anyway() -> None:
    """When the run alone is longer than the deadline, no waiting helps, and none is recommended."""
    error = too_late(9.0, None, [(0.0, measured(run_s=30.0))], CLAIM)
    assert error is not None
    assert "retry_after_s" not in error.to_dict()
    assert too_late(9.0, 10, [(0.0, measured(run_s=30.0))], CLAIM) is None, "a short answer is quick"


def test_in_doubt_it_may_try() -> None:
    """No rate, no ratios or no runs measured in one acceptable tier, or one tier that is quick: it is admitted."""
    slow, unproven, idle = (20.0, measured()), measured(), measured()
    unproven.ratios.clear()
    idle.runs.clear()
    assert too_late(9.0, None, [slow], CLAIM) is not None
    for other in [(None, measured()), (20.0, unproven), (20.0, idle), (1.0, measured())]:
        assert too_late(9.0, None, [slow, other], CLAIM) is None
    assert too_late(9.0, None, [], CLAIM) is None
    assert too_late(9.0, None, [(40.0, unproven)], CLAIM) is not None, "far too late is no doubt"
