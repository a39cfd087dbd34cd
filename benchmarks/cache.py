"""Cache benchmark · bench process · what a hit and a miss cost through the daemon, and how often hits are right.

    latency   exact and semantic hits, misses, the store alone; beside GPTCache in-process
    quality   recall and false hits on labelled pairs (--data DIR); beside a plain cosine and GPTCache's default
    replay    a day of traffic with a known truth through the daemon; beside a plain cosine

Each layout's store is filled once, and every round gets a copy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import cache_ours, cache_quality, cache_replay
from benchmarks.cache_questions import percentile
from benchmarks.cache_rows import Figures, Rounds, embedder_rows, growth_rows, latency_rows
from benchmarks.cache_seed import BASES, Layout, Seeded, Texts, compose, seed
from benchmarks.queue import DIES_WITH_US, MissingError
from benchmarks.report import Report
from metamusesd import config

if TYPE_CHECKING:
    from metamusesd.cache.embedder import FastEmbedder

CASES = ("latency", "quality", "replay")
LAYOUTS = (Layout(1_000), Layout(10_000), Layout(100_000), Layout(100_000, 100))
GROWTH = LAYOUTS[0], LAYOUTS[2]
QUICK_LAYOUTS = (Layout(200),)
SHORT, LONG, JOBS = 600, 300, 1_000
QUICK = 60, 30, 100
YARDSTICK_TIMEOUT_S = 900.0


def run(args: argparse.Namespace) -> Report:
    """The cases that are asked for."""
    from metamusesd.cache.embedder import FastEmbedder

    report = Report(benchmark="cache", command=args.command)
    cases = args.case or CASES
    if unknown := set(cases) - set(CASES):
        raise SystemExit(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    loaded = config.load(None)
    embedder = FastEmbedder(loaded.embedder_dir, loaded.cache.embedder_threads)
    if "latency" in cases:
        _latency(args, embedder, report)
    if "quality" in cases:
        _quality(args, loaded, embedder, report)
    if "replay" in cases and args.only != "yardstick":
        rows, notes = cache_replay.rows(None if args.only == "ours" else embedder, args.quick)
        report.rows += rows
        report.notes += notes
    return report


def _quality(args: argparse.Namespace, loaded: config.Config, embedder: FastEmbedder, report: Report) -> None:
    if args.data is None:
        report.notes.append("quality: left out, it needs --data DIR with " + cache_quality.PAIRS)
        return

    def judge(cosines: Sequence[float]) -> dict[str, list[bool]]:
        with tempfile.TemporaryDirectory(prefix="mm-cache-") as folder:
            (Path(folder) / "cosines.json").write_text(json.dumps(list(cosines)))
            try:
                said = _yardstick(Path(folder), "judge")
            except MissingError as error:
                note = f"quality: left out: {error}"
                report.notes += [note] if note not in report.notes else []
                return {}
        return {f"{said['version']}, its default": said["hits"]}

    report.rows += cache_quality.rows(loaded, embedder, args.data, judge, args.quick)


def _latency(args: argparse.Namespace, embedder: FastEmbedder, report: Report) -> None:
    short, long, jobs = QUICK if args.quick else (SHORT, LONG, JOBS)
    layouts = QUICK_LAYOUTS if args.quick else LAYOUTS
    texts = compose(embedder, max(layout.entries for layout in layouts), short, long)
    report.rows += embedder_rows(texts.embeds_ms[:short], texts.embeds_ms[short:])
    measured: dict[Layout, list[tuple[Figures, Figures]]] = {}
    with tempfile.TemporaryDirectory(prefix="mm-cache-") as folder:
        for number, layout in enumerate(layouts):
            bench = _Bench(Path(folder) / str(number), layout, texts, embedder)
            measured[layout] = bench.rounds(args.rounds or (1 if args.quick else 3), args.only, jobs, report.notes)
            report.rows += latency_rows(layout.name, measured[layout], bench.searches())
            report.notes += bench.remarks(measured[layout])
            bench.clear()
    if GROWTH[0] in measured:
        case = f"{GROWTH[1].entries} / {GROWTH[0].entries} entries, one partition"
        report.rows += growth_rows(case, *(measured[layout] for layout in GROWTH))
    report.notes += [
        f"latency: all entries but {short + long + BASES} have synthetic vectors (cache_seed.py)",
        "latency: tokens are the text's own, 15 and 51; the embedder adds two. One job at a time, each of another user",
        "latency: ours goes producer → Redis → dispatcher → vectors process and back; GPTCache is called in-process, "
        "without a server, walls or a verifier, with the same embedder and its default evaluation",
    ]


class _Bench:
    """One layout: its store, the yardstick's files, and the rounds."""

    def __init__(self, folder: Path, layout: Layout, texts: Texts, embedder: FastEmbedder) -> None:
        self._folder, self._layout, self._texts, self._embedder = folder, layout, texts, embedder
        self.seeded: Seeded | None = None
        self._has_yardstick = False

    def rounds(self, count: int, only: str | None, jobs: int, notes: list[str]) -> list[tuple[Figures, Figures]]:
        """Fill both sides, then take them by turns."""
        if only != "yardstick":
            path = cache_ours.configured(self._folder / "filled")
            self.seeded = seed(config.load(path, environ={}), self._embedder, self._layout, self._texts)
        if only != "ours" and self._layout.partitions == 1:
            try:
                self._fill_yardstick()
            except MissingError as error:
                notes.append(f"latency: left out: {error}")
        found = []
        for number in range(count):
            if number % 2 == 0:
                ours, theirs = self._ours(jobs, number), self._theirs()
            else:
                theirs, ours = self._theirs(), self._ours(jobs, number)
            found.append((ours, theirs))
        return found

    def searches(self) -> dict[str, float]:
        """Percentiles of the store's search alone; empty: ours did not run."""
        took_ms = self.seeded.searches_ms if self.seeded is not None else []
        return {"p50": percentile(took_ms, 0.5), "p99": percentile(took_ms, 0.99)} if took_ms else {}

    def remarks(self, rounds: Rounds) -> list[str]:
        """What a reader must know about the filling and the hits."""
        name, said = self._layout.name, []
        if self.seeded is not None:
            said.append(f"{name}: filled in {self.seeded.put_s:.1f} s, tended in {self.seeded.tend_s:.3f} s, then "
                        "nothing was due (the store has no graph to build)")  # fmt: skip
        theirs = rounds[0][1]
        if theirs:
            hits = ", ".join(
                f"{kind} {theirs[f'{kind}_share']:.3f}, wrong {theirs[f'{kind}_wrong']}" for kind in ("short", "long")
            )
            said.append(f"{name}: the yardstick's hits: {hits}")
        return said

    def clear(self) -> None:
        """Give the disk back."""
        subprocess.run(["rm", "-rf", str(self._folder)], check=True)

    def _ours(self, jobs: int, number: int) -> Figures:
        if self.seeded is None:
            return {}
        path = cache_ours.configured(self._folder / f"round-{number}")
        subprocess.run(["cp", "-a", str(self.seeded.state / "vectors"), str(path.parent)], check=True)
        return cache_ours.run(path, self._layout, self._texts.short, self._texts.long, jobs, f"r{number}")

    def _theirs(self) -> Figures:
        return _yardstick(self._folder, "measure") if self._has_yardstick else {}

    def _fill_yardstick(self) -> None:
        import numpy as np

        self._folder.mkdir(exist_ok=True)
        texts = self._texts
        (self._folder / "embedder").write_text(str(config.load(None).embedder_dir))
        stored = texts.stored(self._layout.entries)
        (self._folder / "questions.json").write_text(json.dumps(stored), "utf-8")
        np.save(self._folder / "vectors.npy", texts.vectors[: len(stored)])
        asked = {"short": texts.short, "long": texts.long}
        pairs = {name: [(pair.asked, pair.stored) for pair in some] for name, some in asked.items()}
        (self._folder / "asked.json").write_text(json.dumps(pairs), "utf-8")
        _yardstick(self._folder, "fill")
        self._has_yardstick = True


def _yardstick(folder: Path, role: str) -> Figures:
    command = [*DIES_WITH_US, sys.executable, "-W", "ignore", "-m", "benchmarks.cache_yardstick", str(folder), role]
    done = subprocess.run(command, capture_output=True, text=True, timeout=YARDSTICK_TIMEOUT_S, check=False)
    if "ModuleNotFoundError" in done.stderr:
        raise MissingError(done.stderr.strip().splitlines()[-1] + "; pip install -e .[bench]")
    if done.returncode:
        raise RuntimeError(f"the yardstick: {done.stderr[-2000:]}")
    said: Figures = json.loads(done.stdout.splitlines()[-1])
    return said
