"""Stage 10 · command line · the quarantine: which jobs are in it and why; give them another life, or forget them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

from metamusesd import cli
from metamusesd.client import Client
from metamusesd.commands import screen
from metamusesd.commands.producer import produce
from metamusesd.job import Priority
from metamusesd.queues.base import JobView

EXCERPT_CHARS = 200
LABELS = {  # the evidence of a crash, in this order; what is not named here follows under its own name
    "at_ms": "when",
    "how": "how",
    "signal": "signal",
    "worker": "worker",
    "pid": "pid",
    "phase": "phase",
    "alone": "alone",
    "neighbours": "neighbours",
    "hung": "hung",
    "prompt_tokens": "prompt tokens",
    "prompt_chars": "prompt characters",
    "tokens": "tokens written",
    "rss_mb": "memory, MB",
    "stacks": "stacks, evidence/",  # in the state directory of its host
}
NOT_DEAD = cli.EXIT_CODES["invalid_request"]


def add_dead(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, action, text in (
        ("list", _list, "what is in it, the newest first"),
        ("show", _show, "one job, with the evidence of each crash"),
        ("retry", _retry, "give jobs another life, with no crashes counted"),
        ("drop", _drop, "forget jobs"),
    ):
        command = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(action=action)
        command.epilog = "exit codes: 0 done, 66 no such job, 65 it is not in the quarantine, 69 Redis not reachable"
    actions.choices["list"].add_argument("--count", type=int, default=100, metavar="N", help="at most (default: 100)")
    actions.choices["show"].add_argument("id", metavar="ID")
    for name in ("list", "show"):
        actions.choices[name].add_argument("--json", action="store_true", help="one line of JSON")
    for name in ("retry", "drop"):
        actions.choices[name].add_argument("ids", nargs="+", metavar="ID")


def dead(args: argparse.Namespace) -> int:
    """Run the action on the configured queue."""
    return produce(cli.configuration(args), lambda client: args.action(client, args))


async def _list(client: Client, args: argparse.Namespace) -> int:
    views = await client.dead(args.count)
    if args.json:
        print(json.dumps([as_dict(view) for view in views], ensure_ascii=False))
    elif views:
        screen.show(
            screen.table(("id", "since", "class", "tier", ">crashes", "reason"), [_row(view) for view in views])
        )
    else:
        print("no job is quarantined")
    return 0


async def _show(client: Client, args: argparse.Namespace) -> int:
    view = await client.status(args.id)
    if args.json:
        print(json.dumps(as_dict(view), ensure_ascii=False))
    else:
        print("\n".join(describe(view)))
    return 0


async def _retry(client: Client, args: argparse.Namespace) -> int:
    return await _each(client.revive, args.ids, {"queued", "ready"})


async def _drop(client: Client, args: argparse.Namespace) -> int:
    return await _each(client.drop, args.ids, {"dropped"})


async def _each(act: Callable[[str], Awaitable[str]], ids: list[str], good: set[str]) -> int:
    """One line a job; the worst of their exit codes."""
    codes = {0}
    for id in ids:
        state = await act(id)
        if state in good:
            print(f"{clean(id)}  {state}")
            continue
        print(f"{clean(id)}  {state}" + ("" if state == "gone" else ": not in the quarantine, left as it is"))
        codes.add(cli.EXIT_CODES["gone"] if state == "gone" else NOT_DEAD)
    return max(codes)


def _row(view: JobView) -> list[str]:
    reason = clean(view.reason.replace("_", " "))
    return [
        view.id,
        _when(view.ended_ms),
        _class(view),
        _tiers(view),
        str(view.crashes),
        screen.plain(reason),
    ]


def describe(view: JobView) -> list[str]:
    """One job for people, in lines."""
    lines = [
        f"{view.id}  {view.state} · class {_class(view)} · tenant {view.tenant} · tier {_tiers(view)}",
        f"  submitted {_when(view.submitted_ms)}, ended {_when(view.ended_ms)}",
        f"  attempt {view.attempt}, {view.crashes} crashes, {view.retries} retries"
        + (f" · given back last for: {clean(view.reason.replace('_', ' '))}" if view.reason else ""),
    ]
    if excerpt := _excerpt(view.body):
        lines.append(f"  prompt: {excerpt}")
    for number, raw in enumerate(view.evidence, 1):
        lines += [f"  crash {number}", *(f"    {label:<18} {text}" for label, text in _evidence(raw))]
    if not view.evidence:
        lines.append("  no evidence is kept")
    return lines


def as_dict(view: JobView) -> dict[str, Any]:
    """The same for programs."""
    return {
        "id": view.id,
        "state": view.state,
        "class": _class(view),
        "tenant": view.tenant,
        "tiers": _route(view).get("tiers", []),
        "submitted_ms": view.submitted_ms,
        "ended_ms": view.ended_ms,
        "attempt": view.attempt,
        "crashes": view.crashes,
        "retries": view.retries,
        "reason": view.reason,
        "evidence": [_object(raw) for raw in view.evidence],
        "request": _object(view.body) if view.body else None,
    }


def clean(text: str) -> str:
    """Text from elsewhere, so that nothing in it steers the terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _class(view: JobView) -> str:
    return Priority(view.priority).name.lower()


def _evidence(raw: bytes) -> list[tuple[str, str]]:
    found = _object(raw)
    names = [name for name in LABELS if name in found] + [name for name in found if name not in LABELS]
    return [
        (clean(LABELS.get(name, name)), _value(name, found[name])) for name in names if found[name] not in (None, "")
    ]


def _value(name: str, value: object) -> str:
    if name == "at_ms" and isinstance(value, int):
        return _when(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _object(raw: bytes) -> Mapping[str, Any]:
    """A JSON object; what is none stands under `raw`."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"raw": raw.decode("utf-8", "replace")}


def _route(view: JobView) -> Mapping[str, Any]:
    return _object(view.route) if view.route else {}


def _tiers(view: JobView) -> str:
    tiers = _route(view).get("tiers")
    return clean(" ".join(map(str, tiers))) if isinstance(tiers, list) and tiers else "-"


def _excerpt(body: bytes) -> str:
    request = _object(body) if body else {}
    text = request.get("user_query") or request.get("raw") or json.dumps(request.get("messages") or "")
    if not isinstance(text, str) or text == '""':
        return ""
    more = f"… ({len(text)} characters)" if len(text) > EXCERPT_CHARS else ""
    return clean(text[:EXCERPT_CHARS]) + more


def _when(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S") if time_ms else "-"
