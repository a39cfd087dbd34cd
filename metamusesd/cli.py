"""Stage 0 · command line · parse, run one command, translate errors into lines and exit codes. Standard library only.

A command lives in `commands/<group>.py` as two functions: `add_<name>(parser)` and `<name>(args) -> exit code`. A group
is imported when one of its commands is named on the command line, so that `--help` is quick and `run` starts clean.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metamusesd.errors import ConfigError, InvalidRequest, MetamusesdError

if TYPE_CHECKING:
    from metamusesd.config import Config

COMMANDS = {  # name: (group, what it does)
    "run": ("daemon", "run the daemon in the foreground"),
    "check": ("daemon", "validate configuration, model files, cores and Redis; change nothing"),
    "status": ("status", "how the running daemon is, on one screen"),
    "top": ("top", "the same, live"),
    "submit": ("jobs", "submit a prompt and print the answer as it is generated"),
    "watch": ("jobs", "follow a job that was submitted before"),
    "cancel": ("jobs", "cancel jobs"),
    "explain": ("explain", "one job's record: its route, the caches, the loads seen, its worker, a timeline"),
    "route": ("route", "what a prompt asks for and which tier it would get; --jsonl for many"),
    "jobs": ("overview", "what waits in the queue, by tier and class, and which hosts serve it"),
    "dead": ("dead", "the quarantine: jobs under which workers died, and why"),
    "cache": ("cache", "the answer caches: facts, purge, explain, report a wrong hit, evaluate on your own questions"),
    "doctor": ("doctor", "look at the machine and the running daemon: what is wrong, why it matters, what mends it"),
    "bench": ("bench", "measure the configured models on this machine; --write keeps the rates for placement"),
    "reload": ("control", "read the configuration again and replace what differs, while jobs run"),
    "drain": ("control", "give workers no more jobs; those that they have end"),
    "undrain": ("control", "give drained workers jobs again"),
    "models": ("models", "fetch, list, verify, inspect model files"),
    "completion": ("completion", "print the completion script of a shell"),
    "version": ("daemon", "print versions"),
}

EXIT_USAGE = 2
EXIT_INTERNAL = 70
EXIT_CONFIG = 78
EXIT_INTERRUPTED = 130
EXIT_CODES = {  # by the code of an error; a job that ended with an error counts by that error's code
    "failed": 1,
    "worker_lost": 1,
    "cancelled": 3,
    "expired": 4,
    "dead": 5,
    "invalid_request": 65,
    "context_overflow": 65,
    "invalid_grammar": 65,
    "template_failed": 65,
    "id_conflict": 65,
    "unknown_tier": 65,
    "model_load_failed": 65,
    "gone": 66,
    "model_not_found": 66,
    "daemon_away": 69,
    "queue_unavailable": 69,
    "queue_fault": EXIT_INTERNAL,
    "queue_full": 75,
    "queue_timeout": 75,
    "deadline_unmeetable": 75,
    "wait_timeout": 75,
    "fetch_failed": 75,
    "store_failed": 75,
    "store_refused": EXIT_CONFIG,
    "store_broken": EXIT_CONFIG,
    "embedder_failed": EXIT_CONFIG,
    "bad_config": EXIT_CONFIG,
    "queue_refused": EXIT_CONFIG,
}

EPILOG = """\
exit codes:
   0  done                        65  the input is not valid (request, grammar, file)
   1  failed; the reason is on    66  no such job, no such model file
      standard error              69  daemon not running, or Redis not reachable
   2  wrong command line          70  internal error, or the daemon could not start
   3  the job was cancelled       71  the daemon had to give up
   4  the job's deadline passed   75  try again later (queue full, too late, timeout)
   5  the job is quarantined      77  only root and the daemon's user may order that
                                  78  bad configuration, one line for each mistake
                                 130  interrupted

The configuration is --config, else $METAMUSESD_CONFIG, else /etc/metamusesd/metamusesd.toml, else built-in
defaults; then the environment (REDIS_URL, MODELS_DIR, METAMUSESD_SECTION__KEY, …), then --set KEY=VALUE.
etc/metamusesd.toml explains every option.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code. Never raises, except SystemExit from argparse."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = _parser(argv).parse_args(argv)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        for mistake in error.mistakes:
            complain(mistake)
        return EXIT_CONFIG
    except MetamusesdError as error:
        complain(describe(error))
        return EXIT_CODES.get(error.code, EXIT_INTERNAL)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output has left; Python would complain again while it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def configuration(args: argparse.Namespace) -> Config:
    """What --config, the environment and --set make together, with the chosen weights (formats.py). Raises
    ConfigError."""
    from metamusesd import config, formats

    file, overrides = sources(args)
    return formats.settle(config.load(file, overrides=overrides))


def sources(args: argparse.Namespace) -> tuple[str | None, dict[str, str]]:
    """The file of --config and the options of --set, before, between and after the command. Raises ConfigError."""
    places = [place for place in ("_before", "_between", "") if hasattr(args, f"set{place}")]
    pairs = [text.partition("=") for place in places for text in getattr(args, f"set{place}")]
    files = [file for place in places if (file := getattr(args, f"config{place}"))]
    if wrong := [f"--set {key}: has no value; write --set {key}=VALUE" for key, sign, _ in pairs if not sign]:
        raise ConfigError(wrong)
    return (files[-1] if files else None), {key.strip(): value for key, _, value in pairs}


def complain(line: str) -> None:
    """One line on standard error."""
    print(f"metamusesd: {line}", file=sys.stderr)


def describe(error: MetamusesdError) -> str:
    """An error for people: its code, its message, and when to try again."""
    text = str(error) if isinstance(error, InvalidRequest) else error.message
    return f"{error.code}: {text}{later(error.fields)}"


def later(fields: Mapping[str, Any]) -> str:
    """` (try again in 2.5 s)` when the error knows that."""
    after_s = fields.get("retry_after_s")
    return f" (try again in {after_s:g} s)" if isinstance(after_s, int | float) and after_s > 0 else ""


def whole_parser() -> argparse.ArgumentParser:
    """The command line with the arguments of every command: for shell completion and the manual page."""
    return _parser([*COMMANDS])


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    """The whole command line; the arguments of a command only if it is named in `argv`."""
    parser = argparse.ArgumentParser(
        prog="metamusesd",
        description="A bare-metal inference daemon: durable priority jobs on Redis, batching model workers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_global(parser, "_before")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (group, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name in argv:
            module = importlib.import_module(f"metamusesd.commands.{group}")
            getattr(module, f"add_{name}")(command)
            leaves = _leaves(command)
            for leaf in leaves:
                _add_global(leaf, "")
            if leaves != [command]:
                _add_global(command, "_between")
            command.set_defaults(run=getattr(module, name))
    return parser


def _leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The command's parser, or those of its own actions."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return list(action.choices.values())
    return [parser]


def _add_global(parser: argparse.ArgumentParser, suffix: str) -> None:
    """Before the command, after it, and after its action; what stands later counts more."""
    parser.add_argument("--config", metavar="FILE", dest=f"config{suffix}", help="the configuration file")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", dest=f"set{suffix}", action="append", default=[],
        help="override one option, for instance --set redis.url=redis://localhost; repeatable",
    )  # fmt: skip
