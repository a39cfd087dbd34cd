"""Stage 0 · command line · the daemon, live: `status` again and again, with token rates measured between two frames."""

from __future__ import annotations

import argparse
import contextlib
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Any

from metamusesd import cli
from metamusesd.commands import health, screen
from metamusesd.commands.advice import advise
from metamusesd.commands.status import frame
from metamusesd.config import Config
from metamusesd.errors import DaemonAway

MOST_COMPLAINTS = 4


def add_top(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print one frame and leave")
    parser.add_argument("--interval", type=float, default=0.5, metavar="S", help="between frames (default: 0.5)")
    parser.epilog = "q or Ctrl-C leaves. Where standard output is no terminal, one frame is printed."


def top(args: argparse.Namespace) -> int:
    """Draw until somebody leaves; exit 69 when no daemon answers at the start."""
    config = cli.configuration(args)
    answer = health.status(config)
    if args.once or not sys.stdout.isatty():
        screen.show(*_frame(answer, config))
        return 0
    interval_s = max(0.1, args.interval)
    with _keys(), screen.live() as draw, contextlib.suppress(KeyboardInterrupt):
        before, before_s = _generated(answer), time.monotonic()
        draw(_frame(answer, config))
        while not _pressed_q(interval_s):
            try:
                answer = health.status(config)
            except DaemonAway as error:
                draw([f"[red]{screen.plain(error.message)}[/]", "", "waiting for it; q leaves"])
                continue
            now, now_s = _generated(answer), time.monotonic()
            draw([*_frame(answer, config, _rates(before, now, now_s - before_s)), "", "[dim]q leaves[/]"])
            before, before_s = now, now_s
    return 0


def _frame(answer: dict[str, Any], config: Config, measured: dict[str, float] | None = None) -> list[object]:
    """As `status` has it, without what only the queue knows; the worst complaints only, for a screen has an end."""
    complaints = advise(answer, config)
    parts = frame(answer, measured, complaints[:MOST_COMPLAINTS], top=True)
    more = len(complaints) - MOST_COMPLAINTS
    return [*parts, *(["", f"{more} more complaints: `metamusesd status`"] if more > 0 else [])]


def _generated(answer: dict[str, Any]) -> dict[str, int]:
    return {worker["name"]: worker.get("generated_tokens", 0) for worker in answer.get("workers", [])}


def _rates(before: dict[str, int], now: dict[str, int], seconds: float) -> dict[str, float]:
    """Tokens/s by worker. A worker that was replaced counts from nought again: 0, not a negative rate."""
    return {name: max(0, tokens - before.get(name, 0)) / seconds for name, tokens in now.items()}


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Keys arrive without Return while this lasts."""
    if not sys.stdin.isatty():
        yield
        return
    saved = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)


def _pressed_q(within_s: float) -> bool:
    """Wait for the next frame's time, or for a key."""
    if not sys.stdin.isatty():
        time.sleep(within_s)
        return False
    end_s = time.monotonic() + within_s
    while (left_s := end_s - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left_s)[0] and sys.stdin.read(1) in ("q", "Q", ""):
            return True
    return False
