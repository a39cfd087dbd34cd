"""The cache benchmark's pure parts: its questions, its day of traffic, its arithmetic."""

from __future__ import annotations

import itertools
from typing import Any

from benchmarks.cache_day import Ask, Given, Meaning, chances, day, flat, is_right, meanings
from benchmarks.cache_quality import rates
from benchmarks.cache_questions import fillers, misses, pairs, percentile
from benchmarks.cache_rows import beside, growth_rows, latency_rows
from benchmarks.cache_seed import Layout

OPEN = Meaning("a", "open", ("How do I fix a kite?", "How can I fix a kite?"))
EXACT = Meaning("b", "exact", ("Write a loop", "Please write a loop"))
NEVER = Meaning("c", "never", ("How warm is it today?",))


def ask(meaning: Meaning, wording: int = 0, user: str = "u") -> Ask:
    return Ask(meaning, meaning.wordings[wording], "t", "m", user)


def test_no_question_is_made_twice() -> None:
    """Stored ones, asked ones, fillers and misses are all different, and the same in every run."""
    both = [*pairs(600, long=False), *pairs(300, long=True)]
    texts = [*(pair.stored for pair in both), *(pair.asked for pair in both), *fillers(5_000)]
    texts += itertools.islice(misses("r0"), 500)
    assert len(set(texts)) == len(texts)
    assert pairs(10, long=False) == pairs(600, long=False)[:10]
    assert fillers(10) == fillers(5_000)[:10]


def test_a_percentile_was_measured() -> None:
    """It is one of the values; the highest share is the last one."""
    assert percentile([5, 1, 3, 2, 4], 0.5) == 3
    assert percentile([1, 2], 0.99) == 2
    assert percentile([7], 1.0) == 7


def test_a_layout_spreads_its_entries_over_tenants() -> None:
    assert {Layout(10).tenant(n) for n in range(5)} == {"bench-0"}
    assert [Layout(10, 2).tenant(n) for n in range(3)] == ["bench-0", "bench-1", "bench-0"]


def test_the_day_is_the_same_every_day() -> None:
    """As many requests as asked for, some of them together, and each text has one meaning."""
    waves = day(500)
    assert waves == day(500)
    assert len(flat(waves)) == 500
    assert max(map(len, waves)) > 1
    texts = [text for meaning in meanings() for text in meaning.wordings]
    assert len(set(texts)) == len(texts)


def test_what_a_right_hit_is() -> None:
    """Any wording of the same meaning; the same text where that is asked for; never what must not be kept."""
    assert is_right(ask(OPEN), Given("semantic", OPEN.wordings[1]))
    assert not is_right(ask(OPEN), Given("semantic", "How do I fix a bike?"))
    assert not is_right(ask(OPEN), Given("exact", OPEN.wordings[0], entry_fits=False))
    assert not is_right(ask(EXACT), Given("semantic", EXACT.wordings[1]))
    assert not is_right(ask(NEVER), Given("exact", NEVER.wordings[0]))


def test_who_had_a_chance_to_hit() -> None:
    """Equal text, another wording; not the first one, not whoever repeats himself, not another wording of code."""
    asks = [ask(OPEN), ask(OPEN, user="v"), ask(OPEN, 1, "w"), ask(OPEN, user="v"), ask(EXACT), ask(EXACT, 1)]
    givens = [Given(kind, "") for kind in ("miss", "exact", "miss", "off", "miss", "miss")]
    assert chances(asks, givens) == {"equal": (1, 1), "worded": (0, 1)}


def test_rates_are_of_each_label() -> None:
    lines: list[dict[str, Any]] = [{"same": True}, {"same": True}, {"same": False}]
    found = rates(lines, [True, False, True])
    assert (found.recall, found.false_hits) == (0.5, 1.0)
    assert rates(lines[:2], [True, True]).false_hits is None


def test_bars_are_for_ours() -> None:
    """Also beside a yardstick; without one its name is left out."""
    row = beside("m", "c", "ms", [(9.0, 1.0)], "other", "<= 10")
    assert (row.met, row.ratio, row.yardstick_name) == (True, 9.0, "other; bar: ours")
    assert beside("m", "c", "ms", [(9.0, None)], "other", "<= 10").yardstick_name is None


def test_one_side_alone_has_rows() -> None:
    """The yardstick alone has latencies, ours alone has growth."""
    theirs = {f"{kind}_{part}": 2.0 for kind in ("short", "long") for part in ("p50", "p99")} | {"version": "x"}
    assert [row.yardstick for row in latency_rows("c", [({}, theirs)], {})] == [2.0] * 4
    small, large = {"short_p50": 1.0, "long_p50": 2.0}, {"short_p50": 1.5, "long_p50": 5.0}
    assert [row.met for row in growth_rows("c", [(small, {})], [(large, {})])] == [True, False]
