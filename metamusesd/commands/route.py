"""Stage 3 · command line · what a prompt asks for, and which tier it would get: your own prompts, without a daemon."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metamusesd import cli
from metamusesd.commands import screen
from metamusesd.config import POLICIES, Config
from metamusesd.dispatcher.router import TierView, routing_rules_of, views_of
from metamusesd.dispatcher.router import route as find
from metamusesd.errors import InvalidRequest
from metamusesd.job import parse_request
from metamusesd.route import Route
from metamusesd.tiers import TIERS


def add_route(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="*", help="the prompt; `-` or nothing: standard input")
    parser.add_argument("--jsonl", metavar="FILE", help="many prompts, one JSON object a line: {id, query}")
    parser.add_argument("--out", metavar="PRED", help="with --jsonl: write the answers here, not to the terminal")
    parser.add_argument("--tenant", default="default", help="whose prompt it is; see [tenants]")
    parser.add_argument("--policy", choices=POLICIES, help="as `tier_policy`")
    parser.add_argument("--all-tiers", action="store_true", help="as if every tier were enabled")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.epilog = "The text alone decides: no model is called, no daemon is needed."


def route(args: argparse.Namespace) -> int:
    """Route one prompt, or each line of a file."""
    config = cli.configuration(args)
    views = [TierView(tier, "") for tier in TIERS] if args.all_tiers else views_of(config)
    if args.jsonl:
        return _file(args, config, views)
    text = sys.stdin.read() if args.text in ([], ["-"]) else " ".join(args.text)
    found = _route(text, args, config, views)
    print(json.dumps(_facts(None, found), ensure_ascii=False)) if args.json else _show(found)
    return 0


def _route(text: str, args: argparse.Namespace, config: Config, views: list[TierView]) -> Route:
    body = {"user_query": text, "tenant": args.tenant, "tier_policy": args.policy}
    request = parse_request({key: value for key, value in body.items() if value})
    return find(request, views, routing_rules_of(config))


def _facts(id: Any, found: Route) -> dict[str, Any]:
    """One prediction. `tier`: where it goes first; `tiers`: all that may serve it."""
    facts = {"domain": found.domain, "level": found.complexity, "score": found.score, "tier": found.tiers[0],
             "reason": found.reason, "confidence": found.confidence, "requested_tier": found.requested_tier,
             "tiers": list(found.tiers), "policy": found.policy, "features": dict(found.features)}  # fmt: skip
    return facts if id is None else {"id": id, **facts}


def _file(args: argparse.Namespace, config: Config, views: list[TierView]) -> int:
    lines = (
        json.dumps(_facts(row["id"], _routed(number, row["query"], args, config, views)), ensure_ascii=False) + "\n"
        for number, row in _rows(Path(args.jsonl))
    )
    if not args.out:
        sys.stdout.writelines(lines)
        return 0
    text = "".join(lines)
    Path(args.out).write_text(text, "utf-8")
    print(f"{text.count(chr(10))} prompts routed: {args.out}")
    return 0


def _routed(number: int, text: str, args: argparse.Namespace, config: Config, views: list[TierView]) -> Route:
    try:
        return _route(text, args, config, views)
    except InvalidRequest as error:
        raise InvalidRequest("--jsonl", f"line {number}: {error.message}", "mend that line") from error


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, its id, which is the number when it has none, and its query). Raises InvalidRequest with the line."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # other line ends may stand inside JSON strings
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest("--jsonl", f"{path}: {error}", "name a file of JSON lines") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest("--jsonl", f"line {number}: {error}", 'write {"id": 1, "query": "…"}') from error
        if not isinstance(row, dict) or not isinstance(row.get("query"), str) or not row["query"].strip():
            raise InvalidRequest("--jsonl", f"line {number}: no query", 'write {"id": 1, "query": "…"}')
        yield number, {"id": number if row.get("id") is None else row["id"], "query": row["query"]}


def _show(found: Route) -> None:
    print(f"domain      {found.domain} (confidence {found.confidence:.2f})")
    print(f"level       {found.complexity} (score {found.score:.2f})")
    print(f"tier        {found.tiers[0]}{_others(found)}")
    print(f"reason      {screen.plain(found.reason)}")
    if found.features:
        print(f"because of  {', '.join(f'{name} {weight:+.2f}' for name, weight in found.features)}")


def _others(found: Route) -> str:
    """Who else may serve it, by its policy."""
    return f", or {', '.join(found.tiers[1:])} ({found.policy})" if found.tiers[1:] else ""
