"""The metric page: counted by one process, rendered by another, in the words that Prometheus understands."""

from __future__ import annotations

import os
import re

import pytest

from metamusesd.board import METRIC_WORDS, Board
from metamusesd.metrics import FAMILIES, Family, MetricsPage, expose, label_text

SAMPLE = re.compile(r'^(metamusesd_[a-z0-9_]+)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (-?[0-9.e+-]+|\+Inf)$')


def samples(text: str) -> dict[tuple[str, str], float]:
    """Parse the exposition format strictly."""
    found, typed = {}, set()
    for line in text.splitlines():
        if line.startswith("#"):
            _, word, name, *_ = line.split(" ", 3)
            assert word in ("HELP", "TYPE")
            typed.add(name)
            continue
        match = SAMPLE.match(line)
        assert match, line
        assert re.sub("_(bucket|sum|count)$", "", match[1]) in typed or match[1] in typed
        found[match[1], match[2] or ""] = float(match[3])
    return found


@pytest.fixture
def page():
    return MetricsPage(Board(1).metric_words)


def test_counters_add_up(page):
    """A counter is the sum of its amounts, by label."""
    page.count("generation_tokens_total", "fast", 5)
    page.count("generation_tokens_total", "fast", 7)
    page.count("generation_tokens_total", "heavy")
    found = samples(page.render())
    assert found["metamusesd_generation_tokens_total", 'tier="fast"'] == 12
    assert found["metamusesd_generation_tokens_total", 'tier="heavy"'] == 1


def test_histograms_are_cumulative_and_complete(page):
    """Buckets grow, the last one is the count, and the sum is in seconds."""
    values = [0.0, 0.0005, 0.001, 0.3, 4, 1000, -1]
    for seconds in values:
        page.observe("time_to_first_token_seconds", "fast/high", seconds)
    found = samples(page.render())
    name, labels = "metamusesd_time_to_first_token_seconds", 'tier="fast",class="high"'
    buckets = [value for (metric, _), value in found.items() if metric == f"{name}_bucket"]
    assert buckets == sorted(buckets)
    assert found[f"{name}_bucket", f'{labels},le="0.001"'] == 4
    assert found[f"{name}_bucket", f'{labels},le="+Inf"'] == found[f"{name}_count", labels] == len(values)
    assert found[f"{name}_sum", labels] == pytest.approx(1004.3015, abs=1e-5)


def test_values_survive_their_writer():
    """A second writer on the same words goes on where the first one was killed."""
    board = Board(1)
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            MetricsPage(board.metric_words).count("requests_total", "done", 3)
            os._exit(0)
        os.waitpid(pid, 0)
    assert MetricsPage(board.metric_words).value("requests_total", "done") == 6


def test_unknown_labels_are_other_and_unknown_names_a_mistake(page):
    """A label value that nobody foresaw is counted; a name that nobody declared raises."""
    page.count("requests_total", "exploded")
    page.observe("request_queue_time_seconds", "fast", 1.0)
    page.observe("request_queue_time_seconds", "mars/high/moon", 1.0)
    found = samples(page.render())
    assert found["metamusesd_requests_total", 'state="other"'] == 1
    assert found["metamusesd_request_queue_time_seconds_count", 'tier="fast",class="other"'] == 1
    assert found["metamusesd_request_queue_time_seconds_count", 'tier="other",class="high"'] == 1
    with pytest.raises(KeyError):
        page.count("no_such_total")
    with pytest.raises(KeyError):
        page.observe("no_such_seconds", "fast", 1.0)


def test_no_two_metrics_share_a_word(page):
    """Every combination of every family has words of its own, inside the page."""
    taken = set()
    for family in FAMILIES:
        for values in family.combinations():
            start = page._offsets[family.name, "/".join(values)]
            words = set(range(start, start + family.words))
            assert not words & taken
            taken |= words
    assert max(taken) < METRIC_WORDS


def test_computed_metrics_escape_their_labels():
    """Quotes, backslashes and line breaks in a label cannot break the page."""
    family = Family("restarts_total", "Restarts.", {"child": ()})
    found = samples(expose(family, [(label_text({"child": 'a"b\\c\nd'}), 2)]))
    assert found == {("metamusesd_restarts_total", 'child="a\\"b\\\\c\\nd"'): 2.0}


def test_an_unused_page_shows_the_zeros_of_its_simple_counters(page):
    """Counters with one label or none begin at zero, so that their first event is an increase; `other`, what has more
    labels, and histograms begin with their first event."""
    found = samples(page.render())
    assert found["metamusesd_requests_total", 'state="dead"'] == 0
    assert found["metamusesd_cache_complaints_total", ""] == 0
    assert set(found.values()) == {0}
    assert not [series for series in found if "other" in series[1] or "," in series[1] or series[0].endswith("_bucket")]


def test_a_gauge_is_set_as_a_whole(page):
    """What is not named any more is zero; odd labels add up as other."""
    page.set("leases_held", {"fast/high": 3, "mars/high": 1, "pluto/high": 1})
    assert page.value("leases_held", "fast/high") == 3
    assert page.value("leases_held", "other/high") == 2
    page.set("leases_held", {"heavy/low": 1})
    assert (page.value("leases_held", "fast/high"), page.value("leases_held", "heavy/low")) == (0, 1)
