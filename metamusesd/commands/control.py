"""Stage 0 · command line · orders to the running daemon, over its control socket: reload, drain, undrain."""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
from typing import Any

from metamusesd import cli
from metamusesd.config import Config
from metamusesd.errors import DaemonAway

EXIT_REFUSED = 1
CODES = {"bad_config": cli.EXIT_CONFIG, "busy": 75, "denied": 77, "invalid_request": 65}


def add_reload(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The daemon reads its configuration again, with the options that it was started with. A mistake anywhere "
        "changes nothing (exit 78). A new model must pass its canary, else everything goes back (exit 1)."
    )


def reload(args: argparse.Namespace) -> int:
    """Returns when the new configuration is in force, or refused."""
    return _order(cli.configuration(args), {"do": "reload"})


def add_drain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--worker", metavar="NAME", help="this one alone, such as fast-0 (default: all)")
    parser.add_argument("--wait", action="store_true", help="return when no job runs there any more")
    parser.epilog = (
        "Jobs that run may end within daemon.drain_s; then they are given back, unburnt. The models stay loaded. "
        "Caches go on answering, and jobs wait for `undrain`, or for another host."
    )


def drain(args: argparse.Namespace) -> int:
    """No more jobs for these workers."""
    return _order(cli.configuration(args), {"do": "drain", "worker": args.worker, "wait": args.wait})


def add_undrain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--worker", metavar="NAME", help="this one alone, such as fast-0 (default: all)")


def undrain(args: argparse.Namespace) -> int:
    """They get jobs again."""
    return _order(cli.configuration(args), {"do": "undrain", "worker": args.worker})


def _order(config: Config, message: dict[str, Any]) -> int:
    """Send it, print what happens, return the exit code."""
    path = config.control_socket
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            with contextlib.suppress(BrokenPipeError):  # it was refused before it asked: the answer says why
                peer.sendall(json.dumps(message).encode() + b"\n")
            for line in peer.makefile("r", encoding="utf-8"):
                if (code := _told(json.loads(line))) is not None:
                    return code
    except PermissionError as error:
        raise DaemonAway(f"{path}: no permission; run this as root or as the daemon's user") from error
    except OSError as error:
        raise DaemonAway(f"no daemon takes orders on {path} ({config.source}): {error}") from error
    raise DaemonAway(f"{path}: the daemon went away before it was done; look at its log")


def _told(answer: dict[str, Any]) -> int | None:
    """One line of the answer; an exit code when it is the last one."""
    if "ok" not in answer:
        print(answer.get("step", ""), flush=True)
        return None
    if answer["ok"]:
        print(answer.get("said", "done"))
        return 0
    for mistake in answer.get("mistakes", []):
        cli.complain(mistake)
    return CODES.get(answer.get("code", ""), EXIT_REFUSED)
