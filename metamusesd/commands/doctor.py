"""Stage 0 · command line · look at the machine, and at the daemon if there is one: what is wrong, what helps.

Exit codes: 0 all is well, 1 a warning, 78 something that must be corrected. Changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from metamusesd import cli
from metamusesd.commands import estimate, health, machine, premises, redis_facts, symptoms
from metamusesd.commands.symptoms import Finding, worst
from metamusesd.config import Config, missing_models
from metamusesd.control import WorkerSpec
from metamusesd.errors import ConfigError, DaemonAway

EXIT_BY_GRADE = {"ok": 0, "warn": 1, "bad": cli.EXIT_CONFIG}
COLOURS = {"ok": "green", "warn": "yellow", "bad": "red"}


def add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="leave out what is well")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.epilog = "exit codes: 0 all is well, 1 a warning, 78 something that must be corrected"


def doctor(args: argparse.Namespace) -> int:
    """Look, and print every finding with its remedy; the exit code is the worst one's."""
    findings = list(examine(cli.configuration(args)))
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False))
    else:
        _show([finding for finding in findings if not (args.quiet and finding.grade == "ok")])
    return EXIT_BY_GRADE[worst(findings)]


def examine(config: Config) -> Iterator[Finding]:
    """Everything, in the order in which it is looked at: the daemon, its machine, its files, its Redis."""
    answer, away, closed = _daemon(config)
    yield from premises.of_daemon(config, answer, away, closed=closed)
    pid = answer.get("pid") if answer else None
    seen = machine.look(pid)
    planned: tuple[WorkerSpec, ...] = ()
    try:
        planned = _workers(config, seen)
    except ConfigError as error:
        yield from (Finding("cores", "bad", mistake, "the daemon does not start") for mistake in error.mistakes)
    workers = premises.workers_of(answer) if answer else planned
    if answer:
        yield from premises.of_drift(workers, planned)
    for line in missing_models(config):
        yield Finding("models", "bad", line, "the daemon does not start", "metamusesd models fetch")
    yield from premises.of_weights(config)
    yield from symptoms.of_cores(seen, workers)
    yield from symptoms.of_load(seen, workers, pid)
    yield from symptoms.of_clocking(seen, workers)
    parts = estimate.parts(config, workers)
    needed = estimate.usual_bytes(parts), estimate.total_bytes(parts)
    yield from symptoms.of_memory(seen, *needed, running=answer is not None)
    yield from symptoms.of_swap(seen)
    yield from symptoms.of_pages(seen)
    yield from symptoms.of_limits(seen)
    yield from symptoms.of_clock(seen)
    yield from symptoms.of_gpus(seen, config, os.environ.get("CUDA_VISIBLE_DEVICES"))
    yield from premises.of_disks(config)
    yield from premises.of_permissions(config)
    yield from redis_facts.of_redis(config, redis_facts.ask_redis(config), _instance(config))


def _daemon(config: Config) -> tuple[dict[str, Any] | None, str, bool]:
    """Its /status; or why there is none, and whether that is for want of permission."""
    try:
        return health.status(config), "", False
    except DaemonAway as error:
        return None, error.message, isinstance(error.__cause__, PermissionError)


def _workers(config: Config, seen: machine.Machine) -> tuple[WorkerSpec, ...]:
    from metamusesd.supervisor.measured import core_rates
    from metamusesd.supervisor.placement import model_sizes, place

    return place(config, seen.cores, model_sizes(config), core_rates(config)).workers


def _instance(config: Config) -> str:
    try:
        return (config.state_dir / "instance").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _show(findings: list[Finding]) -> None:
    from metamusesd.commands import screen

    lines: list[object] = []
    for finding in findings:
        grade = f"[{COLOURS[finding.grade]}]{finding.grade:<4}[/]"
        lines.append(f"{grade}  {finding.topic:<12} {screen.plain(finding.fact)}")
        if finding.why:
            lines.append(f"{'':<19}{screen.plain(finding.why)}")
        if finding.remedy:
            lines.append(f"{'':<17}→ {screen.plain(finding.remedy)}")
    screen.show(*(lines or ["all is well"]))
