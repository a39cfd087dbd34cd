"""Stage 0 · command line · what the configured models do on this machine; `--write` keeps it for placement.

Each model is loaded by a process of its own (engines/measure.py), on the cores of its first worker, one after another.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from metamusesd import cli
from metamusesd.config import Config, missing_models
from metamusesd.control import WorkerSpec
from metamusesd.errors import ConfigError, DaemonAway, EngineFailed, InvalidRequest

PROGRAM = "metamusesd.engines.measure"


def add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="MODEL", help="of [models]; default: those of the enabled tiers")
    parser.add_argument("--cores", metavar="LIST", help="measure on these, such as 0-3,8; default: as placement has it")
    parser.add_argument(
        "--prompts", metavar="N,N", default="64,256,512", help="lengths in tokens (default: 64,256,512)"
    )
    parser.add_argument(
        "--streams", metavar="N,N", help="streams at a time; default: 1, 2, 4, … up to the tier's slots"
    )
    parser.add_argument("--write", action="store_true", help="keep the rates: `cores = auto` goes by them from then on")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.epilog = (
        "Run it while the machine is idle: whatever else uses the cores makes the figures smaller. The daemon reads "
        "what --write keeps, STATE_DIR/rates.json, when it starts; delete the file to go back to estimates."
    )


def bench(args: argparse.Namespace) -> int:
    """Measure, print, and keep if asked."""
    config = cli.configuration(args)
    if missing := missing_models(config):
        raise ConfigError(missing)
    workers = _workers(config, args)
    prompts = _numbers("--prompts", args.prompts)
    _warn(config)
    found = {worker.model: _measure(config, worker, prompts, _streams(args, worker)) for worker in workers}
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _show(found)
    if args.write:
        _keep(config, found)
    return 0


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


def _measure(config: Config, worker: WorkerSpec, prompts: list[int], streams: list[int]) -> dict[str, Any]:
    """One model's figures, in the form of rates.json. Raises EngineFailed."""
    from metamusesd.worker.boot import spec_of

    spec = spec_of(config, worker)
    found: dict[str, Any] = {
        "model": worker.model, "digest": spec.model_digest, "engine": spec.engine, "cores": worker.threads,
        "on": list(worker.cores), "gpus": list(worker.gpus), "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "prefill": {}, "decode": {},
    }  # fmt: skip
    plan = {"spec": asdict(spec), "cores": list(worker.cores), "prompts": prompts, "streams": streams}
    for row in _rows(worker, plan):
        _note(found, row)
    if "rss_bytes" not in found:
        raise EngineFailed(f"{worker.model}: the process that measured it died; try one model alone, or fewer streams")
    return found


def _note(found: dict[str, Any], row: dict[str, Any]) -> None:
    if "problem" in row:
        raise EngineFailed(f"{found['model']}: {row['problem']}")
    if "prompt" in row:
        found["prefill"][str(row["prompt"])] = round(row["tokens_s"], 1)
    elif "streams" in row:
        found["decode"][str(row["streams"])] = round(row["tokens_s"], 1)
    else:
        found |= {name: round(value, 2) for name, value in row.items()}


def _rows(worker: WorkerSpec, plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the measuring process says, line by line; it is told to end when nobody listens any more."""
    environ = dict(os.environ)
    if worker.gpus:
        environ |= {"CUDA_VISIBLE_DEVICES": ",".join(worker.gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    command = [sys.executable, "-m", PROGRAM]
    with subprocess.Popen(  # a process group of its own: Ctrl-C is ours to pass on
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, process_group=0
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(plan))
            child.stdin.close()
            for line in child.stdout:
                row = json.loads(line)
                _say(worker, row)
                yield row
        finally:
            child.terminate()


def _say(worker: WorkerSpec, row: dict[str, Any]) -> None:
    if sys.stderr.isatty():
        words = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if isinstance(value, int | float))
        print(f"\r\x1b[K\x1b[2m{worker.model}: {words}\x1b[0m", end="", file=sys.stderr, flush=True)
        if "rss_bytes" in row:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


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


def _keep(config: Config, found: dict[str, dict[str, Any]]) -> None:
    from metamusesd.supervisor.measured import keep, rates_path

    rows = {row["digest"]: row for row in found.values() if row["digest"]}
    if not rows:
        cli.complain("nothing is kept: an echo model computes nothing")
    elif keep(config, rows):
        print(f"kept in {rates_path(config)}; the daemon goes by it from its next start", file=sys.stderr)
    else:
        raise InvalidRequest("--write", f"{rates_path(config)} cannot be written", "run this as the daemon's user")
