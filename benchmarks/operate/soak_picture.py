"""Operate benchmark · bench process · the day of the soak as an SVG file by hand: a strip a series, one clock below.

Colours follow the reader's scheme (prefers-color-scheme), so that it can be read on light and on dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from benchmarks.operate.watch import Sample
from benchmarks.report import Report

WIDTH, LEFT, RIGHT, TOP, STRIP, GAP, BOTTOM = 900, 70, 130, 66, 110, 34, 40
LINE = 14  # pixels between two names
FIRST_HOUR, HOURS = 8, 24
COLOURS = (("#0b6bcb", "#6db3ff"), ("#c2410c", "#fb9a5f"), ("#0f766e", "#4fd1c0"), ("#7c3aed", "#b794ff"),
           ("#be185d", "#f783b5"), ("#8a6d00", "#d9bb3f"), ("#4d7c0f", "#9bd24a"))  # fmt: skip

Points = Sequence[tuple[float, float]]  # (share of the day, value)


def draw(
    path: Path, samples: Sequence[Sample], kills: Sequence[tuple[float, str]], seconds: float, report: Report
) -> None:
    """Write the picture of these samples."""
    strips = series(samples, seconds)
    height = TOP + len(strips) * (STRIP + GAP) + BOTTOM - GAP
    host = report.machine
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>A day of traffic in {seconds / 60:g} minutes</title><style>{_style()}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        f'<text class="t" x="{LEFT}" y="22">A day of traffic in {seconds / 60:g} minutes: {samples[-1].done} jobs, '
        f"{len(kills)} children killed (dashes)</text>",
        f'<text class="s" x="{LEFT}" y="40">{escape(host.cpu)}, {host.cores} cores · one real model, echo workers · '
        "python -m benchmarks operate --case soak</text>",
    ]
    for number, (name, lines) in enumerate(strips.items()):
        parts += _strip(TOP + number * (STRIP + GAP), name, lines, [at for at, _ in kills])
    for step in range(0, HOURS + 1, 2):
        x = _across(step / HOURS)
        parts.append(
            f'<text x="{x:.1f}" y="{height - 16}" text-anchor="middle">{(FIRST_HOUR + step) % 24:02d} h</text>'
        )
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", "utf-8")


def series(samples: Sequence[Sample], seconds: float) -> dict[str, dict[str, Points]]:
    """Strip → name → points."""
    ats = [sample.at_s / seconds for sample in samples]
    names = sorted({name for sample in samples for name in sample.pids})
    rates = [
        (each.at_s / seconds, (each.done - before.done) / max(0.1, each.at_s - before.at_s))
        for before, each in zip(samples[:-6:6], samples[6::6], strict=False)
    ]
    return {
        "jobs ended a second": {"jobs/s": rates},
        "jobs at work, jobs that wait": {
            "at work": list(zip(ats, [float(each.running) for each in samples], strict=True)),
            "wait": list(zip(ats, [float(each.waiting) for each in samples], strict=True)),
        },
        "memory (PSS), MiB": {
            name: [(at, each.pss_mb[name]) for at, each in zip(ats, samples, strict=True) if each.pss_mb.get(name)]
            for name in names
        },
        "open descriptors": {
            name: [(at, float(each.fds[name])) for at, each in zip(ats, samples, strict=True) if each.fds.get(name)]
            for name in names
        },
        "Redis: keys": {
            "keys": list(zip(ats, [float(each.keys) for each in samples], strict=True)),
            "kept answers": list(zip(ats, [float(each.answers) for each in samples], strict=True)),
        },
        "Redis: memory, MiB": {"used": list(zip(ats, [each.redis_mb for each in samples], strict=True))},
    }


def _strip(top: float, name: str, lines: Mapping[str, Points], kills: Sequence[float]) -> list[str]:
    """Its title, its grid, its curves and their names."""
    most = _round_up(max((y for points in lines.values() for _, y in points), default=1.0))

    def up(y: float) -> float:
        return top + STRIP - y / most * STRIP

    parts = [f'<text class="h" x="{LEFT}" y="{top - 8}">{escape(name)}</text>']
    for step in range(3):
        y = up(most * step / 2)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text class="s" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{most * step / 2:g}</text>')
    parts += [
        f'<line class="kill" x1="{_across(at):.1f}" y1="{top + STRIP}" x2="{_across(at):.1f}" y2="{top + STRIP - 7}"/>'
        for at in kills
    ]
    ends: dict[str, tuple[float, int]] = {}
    for number, (label, points) in enumerate(lines.items()):
        if points:
            path = " ".join(f"{_across(x):.1f},{up(y):.1f}" for x, y in points)
            parts.append(f'<polyline class="line c{number % len(COLOURS)}" points="{path}"/>')
            ends[label] = (up(points[-1][1]), number)
    lowest = top - LINE
    for label, (y, number) in sorted(ends.items(), key=lambda end: end[1]):
        lowest = max(y + 4, lowest + LINE)
        x = WIDTH - RIGHT + 8
        parts.append(f'<text class="n{number % len(COLOURS)}" x="{x}" y="{lowest:.1f}">{escape(label)}</text>')
    return parts


def _across(share: float) -> float:
    return LEFT + min(1.0, max(0.0, share)) * (WIDTH - LEFT - RIGHT)


def _style() -> str:
    """Both colour schemes."""
    plain = (
        "text{font:12px system-ui,sans-serif;fill:#333}.t{font-size:15px;font-weight:600}.h{font-weight:600}"
        ".s{fill:#666}.paper{fill:#fff}.grid{stroke:#ddd}.kill{stroke:#b00020;stroke-dasharray:2 1}"
        ".line{fill:none;stroke-width:1.6}"
    )
    dark = "text{fill:#ddd}.s{fill:#aaa}.paper{fill:#14171a}.grid{stroke:#3a3f45}.kill{stroke:#ff8a80}"
    return f"{plain}{_colours(0)}@media(prefers-color-scheme:dark){{{dark}{_colours(1)}}}"


def _colours(scheme: int) -> str:
    return "".join(
        f".c{number}{{stroke:{pair[scheme]}}}.n{number}{{fill:{pair[scheme]}}}" for number, pair in enumerate(COLOURS)
    )


def _round_up(value: float) -> float:
    """The next number of which a half is plain."""
    if value <= 0:
        return 1.0
    scale = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 2, 4, 6, 8, 10) if step * scale >= value)
