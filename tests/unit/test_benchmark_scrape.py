"""The scrape benchmark compares equal things."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import __main__ as door
from benchmarks.scrape import _daemon, _registry


def series(text: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """All but the creation times that only the yardstick has."""
    return {
        (sample.name, tuple(sorted((key, str(float(value)) if key == "le" else value) for key, value in labels)))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for labels in [sample.labels.items()]
        if not sample.name.endswith("_created")
    }


def test_both_sides_render_the_same_series():
    """The yardstick's registry has exactly our names and labels, buckets included."""
    text = _daemon(2, full=False).metrics()
    assert series(generate_latest(_registry(text)).decode()) == series(text)


def test_it_has_a_door():
    """`python -m benchmarks scrape` is known."""
    assert "scrape" in door.NAMES
