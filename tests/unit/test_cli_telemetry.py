"""What `check` says of traces."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.machinery import ModuleSpec

import pytest

from metamusesd.commands import checks
from metamusesd.config import Config, Telemetry

WANTED = Config(telemetry=Telemetry(otlp_endpoint="http://127.0.0.1:4318"))


def test_traces_that_are_not_wanted_are_not_looked_at() -> None:
    """The default says nothing about them."""
    assert list(checks._telemetry(Config())) == []


def test_where_traces_go_is_said() -> None:
    """With the path that is added."""
    assert list(checks._telemetry(WANTED)) == [checks.Finding("traces go to http://127.0.0.1:4318/v1/traces")]


def _none(_: str) -> ModuleSpec | None:
    return None


def _no_parents(name: str) -> ModuleSpec | None:
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("find", [_none, _no_parents])
def test_a_missing_library_is_a_mistake_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, find: Callable[[str], ModuleSpec | None]
) -> None:
    """Whether all of it or only the exporter is missing."""
    monkeypatch.setattr(importlib.util, "find_spec", find)
    [found] = checks._telemetry(WANTED)
    assert found.wrong and found.text.startswith("telemetry.otlp_endpoint: ") and "metamusesd[otel]" in found.text
