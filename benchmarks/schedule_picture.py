"""Schedule benchmark · bench process · goodput over load by policy, an SVG file by hand: a panel a pattern of arrivals.

Colours follow the reader's scheme (prefers-color-scheme), so that it can be read on light and on dark.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from benchmarks.report import Row

PANEL, HEIGHT, LEFT, TOP, BOTTOM, NAMES = 330, 420, 60, 70, 56, 190
GAP, LINE = 60, 15  # pixels
CASE = re.compile(r"(\w+), (\d+)% load, (\d+) workers")
COLOURS = {
    "ours": ("#0b6bcb", "#6db3ff"),
    "oracle": ("#777777", "#a8a8a8"),
    "least-connections by slots": ("#c2410c", "#fb9a5f"),
    "shortest queue": ("#7c3aed", "#b794ff"),
    "two choices": ("#0f766e", "#4fd1c0"),
    "least-connections": ("#be185d", "#f783b5"),
    "round-robin": ("#8a6d00", "#d9bb3f"),
    "random": ("#4d7c0f", "#9bd24a"),
}

Curves = dict[str, list[tuple[float, float]]]  # policy → (load in %, good jobs/s)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Write the chart of these goodput rows, all of one cluster."""
    panels = curves(rows)
    top = _round_up(max(y for lines in panels.values() for points in lines.values() for _, y in points))
    width = LEFT + len(panels) * (PANEL + GAP) + NAMES - GAP
    found = next(CASE.fullmatch(row.case) for row in rows if row.metric == "goodput")
    workers = found.group(3) if found else "?"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" role="img">',
        f"<title>Goodput over load by policy, {workers} simulated workers</title><style>{_style()}</style>",
        f'<rect class="paper" width="{width}" height="{HEIGHT}"/>',
        f'<text class="t" x="{LEFT}" y="22">Jobs that keep their class\' goals, by load and policy</text>',
        f'<text class="s" x="{LEFT}" y="40">good jobs/s · {workers} simulated workers of three kinds · median of the '
        "seeds · python -m benchmarks schedule --case picture</text>",
    ]
    for number, (arrivals, lines) in enumerate(panels.items()):
        parts += _panel(LEFT + number * (PANEL + GAP), arrivals, lines, top)
    ends = {name: points[-1][1] for name, points in list(panels.values())[-1].items()}
    parts += _names(LEFT + len(panels) * (PANEL + GAP) - GAP + 10, ends, top)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", "utf-8")


def curves(rows: Sequence[Row]) -> dict[str, Curves]:
    """By arrivals and policy. Ours stands in every row; medians of the same seeds, so any row's will do."""
    panels: dict[str, Curves] = {}
    for row in rows:
        found = CASE.fullmatch(row.case)
        if row.metric != "goodput" or found is None or row.ours is None or row.yardstick is None:
            continue
        load, lines = float(found.group(2)), panels.setdefault(found.group(1), {name: [] for name in COLOURS})
        if row.yardstick_name in lines:
            lines[row.yardstick_name].append((load, row.yardstick))
        if row.yardstick_name == "oracle":
            lines["ours"].append((load, row.ours))
    return {name: {policy: sorted(points) for policy, points in lines.items()} for name, lines in panels.items()}


def _panel(left: float, name: str, lines: Mapping[str, Sequence[tuple[float, float]]], top: float) -> list[str]:
    """Axes, grid and curves; ours last, above the others."""
    loads = sorted({x for points in lines.values() for x, _ in points})
    low, high = loads[0], loads[-1]

    def across(load: float) -> float:
        return left + (load - low) / (high - low or 1) * PANEL

    parts = [f'<text class="h" x="{left}" y="{TOP - 10}">{escape(name)} arrivals</text>']
    for step in range(5):
        y = _up(top * step / 4, top)
        parts.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{left + PANEL}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{top * step / 4:g}</text>')
    for load in loads:
        parts.append(f'<text x="{across(load):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{load:g} %</text>')
    parts.append(
        f'<text class="s" x="{left + PANEL / 2}" y="{HEIGHT - 14}" text-anchor="middle">load, of the capacity</text>'
    )
    for policy in reversed(list(lines)):
        spots = [(across(x), _up(y, top)) for x, y in lines[policy]]
        path, mark = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots), _mark(policy)
        parts.append(f'<polyline class="line {mark}" points="{path}"/>')
        parts += [f'<circle class="dot {mark}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in spots]
    return parts


def _names(left: float, ends: Mapping[str, float], top: float) -> list[str]:
    """Each policy beside its end in the last panel, pushed down where two would lie on each other."""
    parts, lowest = [], 0.0
    for name, y in sorted(ends.items(), key=lambda end: -end[1]):
        lowest = max(_up(y, top) + 4, lowest + LINE)
        parts.append(f'<text class="name {_mark(name)}" x="{left}" y="{lowest:.1f}">{escape(name)}</text>')
    return parts


def _style() -> str:
    """Both colour schemes."""
    plain = (
        "text{font:12px system-ui,sans-serif;fill:#333}.t{font-size:15px;font-weight:600}.h{font-weight:600}"
        ".s{fill:#666}.paper{fill:#fff}.grid{stroke:#ddd}.line{fill:none;stroke-width:2}.line.ours{stroke-width:3.5}"
        ".line.oracle{stroke-dasharray:6 4}.name.ours{font-weight:700}"
    )
    dark = "text{fill:#ddd}.s{fill:#aaa}.paper{fill:#14171a}.grid{stroke:#3a3f45}"
    return f"{plain}{_colours(0)}@media(prefers-color-scheme:dark){{{dark}{_colours(1)}}}"


def _colours(scheme: int) -> str:
    return "".join(
        f".line.{_mark(name)}{{stroke:{pair[scheme]}}}.dot.{_mark(name)},.name.{_mark(name)}{{fill:{pair[scheme]}}}"
        for name, pair in COLOURS.items()
    )


def _mark(policy: str) -> str:
    return policy.replace(" ", "-")


def _up(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def _round_up(value: float) -> float:
    """The next number of which a quarter is plain."""
    scale = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1.0, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * scale >= value)
