"""Any benchmark · bench process · the one shape of a report, as JSON and as a table.

    {"benchmark", "version", "machine": {cpu, cores, memory, kernel, python, load}, "command",
     "rows": [{"metric", "case", "unit", "ours", "yardstick", "yardstick_name", "ratio", "bar", "met", "rounds"}],
     "notes": [text]}

`rounds` holds one [ours, yardstick] a round; `ours` and `yardstick` are their medians, and `ratio` is the median of the
rounds' own ratios, so that a machine that drifts during the run hurts both sides of each. A bar such as ">= 1.2" is
for the ratio when there is a yardstick, else for `ours`. An absolute figure has no ratio.
"""

from __future__ import annotations

import operator
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

import metamusesd
from benchmarks import machine

COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of one case."""

    metric: str
    case: str
    unit: str
    ours: float | None
    yardstick: float | None = None
    yardstick_name: str | None = None
    ratio: float | None = None
    bar: str | None = None
    met: bool | None = None
    rounds: list[list[float | None]] = []


class Report(msgspec.Struct, kw_only=True):
    """What one benchmark found. `notes` say what a reader must know to believe the figures."""

    benchmark: str
    command: str
    version: str = metamusesd.__version__
    machine: machine.Machine = msgspec.field(default_factory=machine.describe)
    rows: list[Row] = msgspec.field(default_factory=list)
    notes: list[str] = msgspec.field(default_factory=list)

    def missed(self) -> list[Row]:
        """The rows whose bar was not reached."""
        return [row for row in self.rows if row.met is False]

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")

    def show(self, console: Console | None = None) -> None:
        """Print the report as a table."""
        console = console or Console(width=None if sys.stdout.isatty() else 200)
        host = self.machine
        title = f"{self.benchmark} · metamusesd {self.version} · {host.cpu}, {host.cores} cores, {host.memory}"
        console.print(_table(title, self.rows))
        for note in self.notes:
            console.print(f"· {note}", highlight=False, markup=False)


def compare(
    metric: str,
    case: str,
    unit: str,
    rounds: Sequence[tuple[float | None, float | None]] | Sequence[tuple[float, float]],
    *,
    against: str | None = None,
    bar: str | None = None,
) -> Row:
    """The row of alternating rounds of (ours, yardstick); a side that did not run is None."""
    ours = _median([mine for mine, _ in rounds])
    theirs = _median([other for _, other in rounds])
    ratio = _median([mine / other for mine, other in rounds if mine is not None and other])
    judged = ratio if against is not None else ours
    return Row(
        metric=metric,
        case=case,
        unit=unit,
        ours=ours,
        yardstick=theirs,
        yardstick_name=against,
        ratio=ratio,
        bar=bar,
        met=None if bar is None or judged is None else meets(judged, bar),
        rounds=[[_short(mine), _short(other)] for mine, other in rounds],
    )


def absolute(metric: str, case: str, unit: str, rounds: Sequence[float | None], *, bar: str | None = None) -> Row:
    """The row of a figure that has no yardstick."""
    return compare(metric, case, unit, [(value, None) for value in rounds], bar=bar)


def meets(value: float, bar: str) -> bool:
    """Whether `value` satisfies a bar such as ">= 1.2"."""
    sign, _, limit = bar.partition(" ")
    return COMPARE[sign](value, float(limit))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _short(statistics.median(known)) if known else None


def _short(value: float | None) -> float | None:
    """Four significant digits: more would pretend a precision that no run has."""
    return None if value is None else float(f"{value:.4g}")


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("metric", "case", "unit"):
        table.add_column(name)
    for name in ("ours", "yardstick", "ratio", "bar"):
        table.add_column(name, justify="right")
    table.add_column("met")
    table.add_column("yardstick is")
    marks = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}
    for row in rows:
        figures = (_text(row.ours), _text(row.yardstick), _text(row.ratio), row.bar or "")
        table.add_row(row.metric, row.case, row.unit, *figures, marks[row.met], row.yardstick_name or "")
    return table


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
