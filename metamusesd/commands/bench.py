"""Stage 0 · command line · what the configured models do on this machine; `--write` keeps it for placement.

Each model is loaded by a process of its own (engines/measure.py), on the cores of its first worker, one after another.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

from metamusesd import cli
from metamusesd.config import Config, missing_models
from metamusesd.control import WorkerSpec
from metamusesd.errors import ConfigError, DaemonAway, InvalidRequest
from metamusesd.formats import as_configured, unfit

PROMPTS = "64,256,512"


def add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="MODEL", help="of [models]; default: those of the enabled tiers")
    parser.add_argument("--cores", metavar="LIST", help="measure on these, such as 0-3,8; default: as placement has it")
    parser.add_argument("--prompts", metavar="N,N", help=f"lengths in tokens (default: {PROMPTS})")
    parser.add_argument(
        "--streams", metavar="N,N", help="streams at a time; default: 1, 2, 4, … up to the tier's slots"
    )
    parser.add_argument(
        "--formats", action="store_true",
        help="compare other formats of the models' GGUF files: perplexity and speed; --write keeps the best one for "
        'models.*.format = "auto"',
    )  # fmt: skip
    parser.add_argument(
        "--try", dest="tried", metavar="LIST", default="", help="with --formats: only these, such as Q8_0,Q4_0"
    )
    parser.add_argument(
        "--write", action="store_true", help="keep the rates, and the format: the daemon goes by them from then on"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.epilog = (
        "Run it while the machine is idle: whatever else uses the cores makes the figures smaller. The daemon reads "
        "what --write keeps, STATE_DIR/rates.json, when it starts; delete the file to go back to estimates. --formats "
        "takes minutes a model, and room for the candidates in the models directory."
    )


def bench(args: argparse.Namespace) -> int:
    """Measure, print, and keep if asked."""
    config = cli.configuration(args)
    if missing := missing_models(config):
        raise ConfigError(missing)
    _check_options(args)
    workers = _workers(config, args)
    prompts = _numbers("--prompts", args.prompts or PROMPTS)
    _warn(config)
    if args.formats:
        return _formats(config, workers, args)
    found = _measure(config, workers, prompts, args)
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _show(found)
    if args.write:
        _keep(config, {row["digest"]: row for row in found.values() if row["digest"]})
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """What would mean nothing is refused. Raises InvalidRequest."""
    if args.formats and (args.prompts or args.streams):
        field = "--prompts" if args.prompts else "--streams"
        raise InvalidRequest(field, "--formats measures one usual job in a full batch", "leave it out")
    if args.tried and not args.formats:
        raise InvalidRequest("--try", "is for --formats", "add --formats, or leave it out")


def _workers(config: Config, args: argparse.Namespace) -> list[WorkerSpec]:
    """The first worker of each model as placement has it; on other cores if asked. Raises ConfigError."""
    from metamusesd.supervisor.cpus import parse_list, usable_cores
    from metamusesd.supervisor.measured import core_rates
    from metamusesd.supervisor.placement import model_sizes, place

    cores = usable_cores()
    first: dict[str, WorkerSpec] = {}
    for worker in place(config, cores, model_sizes(config), core_rates(config)).workers:
        first.setdefault(worker.model, worker)
    if strange := [name for name in args.names if name not in first]:
        raise InvalidRequest("MODEL", f"{strange[0]!r} serves no enabled tier", f"use {', '.join(first)}")
    chosen = [first[name] for name in args.names or first]
    if not args.cores:
        return chosen
    try:
        numbers = parse_list(args.cores)
    except ValueError:
        numbers = set()
    if not numbers or not numbers <= cores.numbers:
        usable = ", ".join(map(str, sorted(cores.numbers)))
        raise InvalidRequest("--cores", f"{args.cores!r} is not usable here", f"choose from {usable}, such as 0-3,8")
    return [replace(worker, cores=tuple(sorted(numbers))) for worker in chosen]


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise InvalidRequest(option, f"{text!r} is no list of numbers", "give some from 1 upwards, such as 1,4,8")
    return numbers


def _streams(args: argparse.Namespace, worker: WorkerSpec) -> list[int]:
    if args.streams:
        return _numbers("--streams", args.streams)
    return [*(2**power for power in range(8) if 2**power < worker.slots), worker.slots]


def _warn(config: Config) -> None:
    """A daemon that serves meanwhile is measured along with the model."""
    from metamusesd.commands import health

    with suppress(DaemonAway):
        pid = health.status(config).get("pid")
        cli.complain(f"a daemon runs here (pid {pid}): its workers use the same cores; stop it for figures to trust")


def _measure(
    config: Config, workers: list[WorkerSpec], prompts: list[int], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Each model's figures, in the form of rates.json. Raises EngineFailed."""
    from metamusesd.commands.measuring import figures
    from metamusesd.worker.boot import spec_of

    return {each.model: figures(each, spec_of(config, each), prompts, _streams(args, each)) for each in workers}


def _formats(config: Config, workers: list[WorkerSpec], args: argparse.Namespace) -> int:
    """Compare formats of the models' files, one model after the other; each choice is kept as soon as it is made."""
    from metamusesd.commands import formats, screen

    tried = formats.check_formats(args.tried)
    formats.clean_up_when_told_to_end()
    if not args.write:
        cli.complain("nothing will be kept; --write keeps what is chosen")
    found = {}
    for worker in _fit(config, workers, args.names):
        trial = formats.trial(as_configured(config, worker.model), worker, tried)
        outcome = found[worker.model] = formats.compare(trial, write=args.write)
        if not args.json:
            screen.show(*outcome.table)
        print(outcome.said, file=sys.stderr)
        if args.write:
            _keep(config, outcome.figures)
    if args.json:
        print(json.dumps({name: outcome.row for name, outcome in found.items()}, ensure_ascii=False))
    return 0


def _fit(config: Config, workers: list[WorkerSpec], named: list[str]) -> list[WorkerSpec]:
    """Those whose file can be had in other formats. InvalidRequest: one that is named cannot, or none of them can."""
    problems = {worker.model: found[0] for worker in workers if (found := unfit(config, worker.model))}
    for name, problem in problems.items():
        if named or len(problems) == len(workers):
            raise InvalidRequest("MODEL", f"{name!r} is not for --formats", problem)
        cli.complain(f"{name} is left out: {problem}")
    return [worker for worker in workers if worker.model not in problems]


def _show(found: dict[str, dict[str, Any]]) -> None:
    from metamusesd.commands import screen
    from metamusesd.supervisor.measured import machine

    parts: list[object] = [screen.plain(machine())]
    for name, row in found.items():
        where = f"GPU {' '.join(row['gpus'])}" if row["gpus"] else f"cores {screen.numbers(row['on'])}"
        memory = f"{screen.size(row['rss_bytes'])} resident, {screen.size(row['private_bytes'])} of it its own"
        parts += ["", f"{screen.plain(name)} on {where}: loaded in {row['load_s']:.2f} s; {memory}"]
        lines = [[f"prompt of {length} tokens", f"{rate:.0f}", ""] for length, rate in row["prefill"].items()]
        lines += [
            [f"{number} stream{'s' * (number != '1')}", f"{rate:.0f}", f"{rate / int(number):.1f}"]
            for number, rate in row["decode"].items()
        ]
        parts.append(screen.table(("", ">tokens/s", ">each"), lines))
    screen.show(*parts)


def _keep(config: Config, rows: dict[str, dict[str, Any]]) -> None:
    from metamusesd.supervisor.measured import keep, rates_path

    if not rows:
        cli.complain("nothing is kept: an echo model computes nothing")
    elif keep(config, rows):
        print(f"kept in {rates_path(config)}; the daemon goes by it from its next start", file=sys.stderr)
    else:
        raise InvalidRequest("--write", f"{rates_path(config)} cannot be written", "run this as the daemon's user")
