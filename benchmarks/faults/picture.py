"""Faults benchmark · bench process · draw a curve as an SVG file by hand: one chart, logarithmic across, linear up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 50, 60
LINE = 16  # pixels between two names
COLOURS = ("#1b6ca8", "#c8553d", "#588157", "#7b5ea7")
STYLE = "text{font:13px system-ui,sans-serif;fill:#333} .t{font-size:15px;font-weight:600} .s{fill:#777;font-size:12px}"

Points = Sequence[tuple[float, float]]


def draw(path: Path, title: str, subtitle: str, across: str, up: str, curves: Mapping[str, Points]) -> None:
    """Write the chart. Values of x are powers of ten or lie between them; y starts at zero."""
    xs = [x for points in curves.values() for x, _ in points]
    top = _round_up(max(y for points in curves.values() for _, y in points))
    low, high = math.floor(math.log10(min(xs))), math.ceil(math.log10(max(xs)))

    def place(x: float, y: float) -> tuple[float, float]:
        part = (math.log10(x) - low) / max(1, high - low)
        return LEFT + part * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text class="t" x="{LEFT}" y="20">{escape(title)}</text>',
        f'<text class="s" x="{LEFT}" y="38">{escape(subtitle)}</text>',
    ]
    for step in range(5):
        y = top * step / 4
        left, height = place(10**low, y)
        lines.append(f'<line x1="{left:.1f}" y1="{height:.1f}" x2="{WIDTH - RIGHT}" y2="{height:.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>')
    for power in range(low, high + 1):
        middle, bottom = place(10**power, 0)
        label = f"{10**power:,}".replace(",", " ")
        lines.append(f'<text x="{middle:.1f}" y="{bottom + 20:.1f}" text-anchor="middle">{label}</text>')
    centre = LEFT + (WIDTH - LEFT - RIGHT) / 2
    lines.append(f'<text x="{centre:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(across)}</text>')
    lines.append(
        f'<text transform="translate(18 {HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(up)}</text>'
    )
    for number, points in enumerate(curves.values()):
        lines += _curve(COLOURS[number % len(COLOURS)], [place(x, y) for x, y in sorted(points)])
    lines += _names({name: place(*max(points)) for name, points in curves.items()})
    path.write_text("\n".join([*lines, "</svg>"]) + "\n", "utf-8")


def _curve(colour: str, spots: Points) -> list[str]:
    """A line and its dots."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots]


def _names(ends: Mapping[str, tuple[float, float]]) -> list[str]:
    """Each curve's name beside its end, pushed down where two would lie on each other."""
    lines, lowest = [], 0.0
    for name, (x, y) in sorted(ends.items(), key=lambda end: end[1][1]):
        lowest = max(y + 4, lowest + LINE)
        colour = COLOURS[list(ends).index(name) % len(COLOURS)]
        lines.append(f'<text x="{x + 8:.1f}" y="{lowest:.1f}" style="fill:{colour}">{escape(name)}</text>')
    return lines


def _round_up(value: float) -> float:
    """The next 1, 2, 4 or 8 times a power of ten: a quarter of it is a plain number."""
    scale = 10 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 2, 4, 8, 10) if step * scale >= value)
