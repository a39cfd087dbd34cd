"""Stage 0 · command line · what is drawn on a terminal. The only file that imports rich; imported when needed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

WIDE = 200  # columns, where standard output is no terminal
GAP = 2  # between two columns

Report = Callable[[str, int, int], None]  # what, bytes done, bytes in all


@contextlib.contextmanager
def byte_progress() -> Iterator[Report]:
    """Bars on standard error; one line for each finished step where that is no terminal."""
    if not sys.stderr.isatty():
        yield _plain_report()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def report(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done)

        yield report


def _plain_report() -> Report:
    finished = set()

    def report(label: str, done: int, total: int) -> None:
        if done >= total and label not in finished:
            finished.add(label)
            print(f"  {label}  {size(total)}", file=sys.stderr)

    return report


def table(
    headings: Iterable[str], rows: Iterable[Iterable[object]], title: str | None = None, spare: Sequence[str] = ()
) -> Table:
    """A plain table; columns of numbers are set flush right. `spare`: the columns that a narrow terminal goes without,
    the first ones first."""
    names, cells = list(headings), [[str(cell) for cell in row] for row in rows]
    left_out = _too_many(names, cells, spare)
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for heading in names:
        if heading not in left_out:
            justify = "right" if heading.startswith(">") else "left"
            drawn.add_column(heading.lstrip(">"), justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in cells:
        drawn.add_row(*(cell for heading, cell in zip(names, row, strict=True) if heading not in left_out))
    return drawn


def _too_many(headings: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str]) -> set[str]:
    """Which columns of `spare` must go, so that the others are whole."""
    columns = zip(headings, *rows, strict=True) if rows else ([heading] for heading in headings)
    widths = {
        column[0]: max(Text.from_markup(cell.removeprefix(">")).cell_len for cell in column) + GAP for column in columns
    }
    left_out: set[str] = set()
    for heading in spare:
        if sum(widths.values()) <= _width() + GAP:
            break
        widths.pop(heading)
        left_out.add(heading)
    return left_out


def _width() -> int:
    """Of the terminal; wide enough for every column where the output is none."""
    return Console().width if sys.stdout.isatty() else WIDE


def show(*things: object) -> None:
    """Print tables and texts; wide enough for every column where the output is no terminal."""
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=WIDE)
    for thing in things:
        console.print(thing)


@contextlib.contextmanager
def live() -> Iterator[Callable[[Sequence[object]], None]]:
    """A whole screen that is drawn again and again; the terminal is as it was afterwards."""
    with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as drawing:

        def draw(things: Sequence[object]) -> None:
            drawing.update(Group(*(cast(RenderableType, thing) for thing in things)), refresh=True)

        yield draw


def plain(text: str) -> str:
    """Text from elsewhere, so that its brackets stay brackets."""
    return escape(text)


def bar(part: float, whole: float, width: int = 10) -> str:
    """`████░░░░░░`."""
    filled = round(width * min(part, whole) / whole) if whole else 0
    return "█" * filled + "░" * (width - filled)


def numbers(values: Sequence[int]) -> str:
    """`0-3,8`; `any` for none."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ",".join(f"{low}-{high}" if high > low else str(low) for low, high in runs) or "any"


def size(count_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count_bytes < 1000:
            return f"{count_bytes:.0f} {unit}" if unit == "B" else f"{count_bytes:.3g} {unit}"
        count_bytes /= 1000
    return f"{count_bytes:.3g} TB"
