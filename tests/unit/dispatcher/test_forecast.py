"""The forecast: rates, factors and run times measured in simulated services."""

from __future__ import annotations

import math

import pytest

from metamusesd.dispatcher.forecast import LEAST_RUNS, PRIOR, Forecast, Rate, TierForecast, quantile, raw_s
from metamusesd.queues.base import Service
from tests.unit.dispatcher.simulated import Job, Simulation

MIXED = (0.3, 0.4, 0.2, 0.1)


def holds(jobs: list[Job], share: str) -> float:
    """The percentage of predicted jobs that started in time."""
    limits: list[tuple[float, float]] = [(job.waited_s, getattr(job, share)) for job in jobs if job.p90_s is not None]
    assert len(limits) > 1000
    return 100.0 * sum(waited <= limit for waited, limit in limits) / len(limits)


@pytest.mark.parametrize("mix", [(0.0, 1.0, 0.0, 0.0), MIXED], ids=["one class", "four classes"])
@pytest.mark.parametrize(("load", "swing"), [(0.95, 0.0), (0.9, 0.5), (1.05, 0.0), (1.3, 0.0)])
def test_predictions_hold(load: float, swing: float, mix: tuple[float, ...]) -> None:
    """Near saturation, with a swinging load and with a growing queue, p90 holds for about nine jobs in ten."""
    jobs = [job for seed in range(3) for job in Simulation(seed, load, mix, swing).run()]
    p50, p90 = holds(jobs, "p50_s"), holds(jobs, "p90_s")
    print(f"load {load} swing {swing} mix {mix}: p50 holds for {p50:.1f} %, p90 for {p90:.1f} %")
    assert 80 <= p90 <= 97
    assert 30 <= p50 <= 70


def test_a_rate_counts_only_busy_time() -> None:
    """Ten starts a second while jobs wait are ten, however long the queue was empty in between."""
    rate, now_s = Rate(), 0.0
    for _ in range(5):
        for _ in range(20):
            rate.started(1, True, now_s)
            now_s += 0.1
        rate.started(1, False, now_s)
        now_s += 100.0
        rate.started(1, False, now_s)
    assert rate.hz(now_s) == pytest.approx(10)


def test_a_rate_adapts() -> None:
    """When a tier gets slower, the rate follows within its memory; when it stops, within the pause itself."""
    rate, now_s = Rate(), 0.0
    for step_s in [0.1] * 200 + [0.4] * 200:
        now_s += step_s
        rate.started(1, True, now_s)
    assert rate.hz(now_s) == pytest.approx(2.5, rel=0.15)
    assert rate.hz(now_s + 1000) < 0.1


def test_nothing_is_told_too_early() -> None:
    """Few starts give no rate, few ratios no factors, few runs no run time."""
    rate, tier = Rate(), TierForecast()
    for now_s in range(5):
        rate.started(1, True, now_s)
    tier.ratios.extend([7.0] * 10)
    tier.runs.extend([(1.0, 10)] * (LEAST_RUNS - 1))
    tier.calibrate([])
    assert rate.hz(5) == 0.0
    assert tier.factor(0.9) == PRIOR[0.9]
    assert tier.run_s(0.5, None) is None


def test_short_answers_take_less() -> None:
    """A run's time is scaled by the tokens that are asked for, never upwards."""
    tier = TierForecast()
    tier.runs.extend([(4.0, 100)] * LEAST_RUNS)
    assert [tier.run_s(0.5, tokens) for tokens in (None, 25, 100, 1000)] == [4.0, 1.0, 4.0, 4.0]


def test_who_still_waits_counts() -> None:
    """A job past its p90 is asked about, and its wait so far raises the factor; one that is gone is forgotten."""
    forecast = Forecast(["fast"])
    forecast.tiers["fast"].ratios.extend([1.0] * 20)
    for number in range(20):
        forecast.watch(str(number), "fast", 1.0, now_s=0.0)
    assert forecast.overdue(1.9) is None
    for _ in range(20):
        id = forecast.overdue(9.0)
        assert id is not None
        forecast.forget(id) if id == "0" else forecast.waits(id, 9.0)
    forecast.calibrate()
    assert forecast.tiers["fast"].factor(0.9) == 9.0
    forecast.begun("1", 10.0)
    assert forecast.tiers["fast"].ratios[-1] == 10.0


def test_raw_waits() -> None:
    """Rates and free places of all hosts add up; a free place means no wait; no rate, no prediction."""
    one, other = Service("m", 0, 2.0), Service("m", 3, 3.0)
    assert raw_s(9, [one]) == 5.0
    assert raw_s(9, [one, other]) == pytest.approx(7 / 5)
    assert raw_s(2, [one, other]) == 0.0
    assert raw_s(2, [Service("m")]) is None
    assert raw_s(2, []) is None


def test_quantiles() -> None:
    """The conformal quantile stands a little above the plain one, and inside the sample."""
    assert quantile(range(1, 20), 0.9) == 18
    assert quantile([5.0], 0.9) == quantile([5.0], 0.1) == 5.0
    assert not math.isnan(quantile([1.0, 2.0], 0.5))
