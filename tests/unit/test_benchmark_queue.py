"""The queue benchmark's arithmetic: which yardstick carries the bar."""

from __future__ import annotations

from typing import Any

from benchmarks.queue import rows


def figures(p50_ms: float, p99_ms: float, jobs_per_s: float, version: str = "") -> dict[str, Any]:
    return {"p50_ms": p50_ms, "p99_ms": p99_ms, "jobs_per_s": jobs_per_s, "version": version}


def test_the_bar_stands_beside_the_best_yardstick() -> None:
    """The best yardstick may be another one for each metric; it comes first and alone has the bar."""
    one = {"ours": figures(1, 4, 900), "on_saq": figures(2, 5, 100, "SAQ"), "on_dramatiq": figures(4, 10, 200, "dq")}
    found = rows([one, one, one], (10, 50))
    with_bar = [(row.metric, row.yardstick_name, row.ratio, row.met) for row in found if row.bar]
    assert with_bar == [
        ("submit to result, p50", "SAQ", 0.5, True),
        ("submit to result, p99", "SAQ", 0.8, True),
        ("throughput", "dq", 4.5, True),
    ]
    assert [row.yardstick_name for row in found] == ["SAQ", "dq", "SAQ", "dq", "dq", "SAQ"]


def test_one_side_alone() -> None:
    """Without yardsticks the rows are absolute; without ours they have no ratio."""
    assert [row.ratio for row in rows([{"ours": figures(1, 2, 3)}], (1, 1))] == [None] * 3
    assert [row.ours for row in rows([{"on_saq": figures(1, 2, 3, "SAQ")}], (1, 1))] == [None] * 3
