"""What is drawn fits the terminal."""

from __future__ import annotations

import pytest
from rich.console import Console

from metamusesd.commands import screen

HEADINGS, ROW = ("name", "bar", ">rate"), ["fast-0", "[green]██████████[/]", "12"]


def drawn(**more: object) -> list[str]:
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        console.print(screen.table(HEADINGS, [ROW], **more))  # type: ignore[arg-type]
    return captured.get().split()


def test_a_narrow_terminal_goes_without_the_spare_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as need be, the first ones first; what is left is whole."""
    monkeypatch.setattr(screen, "_width", lambda: 12)
    assert drawn(spare=("bar", ">rate")) == ["name", "rate", "fast-0", "12"]
    monkeypatch.setattr(screen, "_width", lambda: 8)
    assert drawn(spare=("bar", ">rate")) == ["name", "fast-0"]


def test_a_wide_terminal_has_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """Markup takes no room."""
    monkeypatch.setattr(screen, "_width", lambda: len("fast-0") + 2 + 10 + 2 + len("rate"))
    assert drawn(spare=("bar",)) == ["name", "bar", "rate", "fast-0", "██████████", "12"]


def test_a_table_without_rows_has_its_headings() -> None:
    """Nothing to measure, and no error."""
    console = Console(width=80)
    with console.capture() as captured:
        console.print(screen.table(HEADINGS, [], spare=("bar",)))
    assert captured.get().split() == ["name", "bar", "rate"]
