"""Stage 10 · command line · one job's record: what it asked for, who could have served it, what happened when."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from metamusesd import cli
from metamusesd.client import Client
from metamusesd.commands import screen
from metamusesd.commands.producer import produce
from metamusesd.job import TERMINAL, Priority, Result
from metamusesd.queues.base import JobEvent, JobView
from metamusesd.route import CacheNote, Route, read_route


def add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the job's id")
    parser.add_argument("--json", action="store_true", help="print the whole record as one line of JSON")
    parser.epilog = "The record lives as long as the job: queue.result_ttl_s after its end."


def explain(args: argparse.Namespace) -> int:
    """Print the record; JobGone when the job, or its record, is not there any more."""
    return produce(cli.configuration(args), lambda client: _explain(client, args))


async def _explain(client: Client, args: argparse.Namespace) -> int:
    view = await client.status(args.id)
    events = await client.history(args.id)
    result = await client.wait(args.id) if view.state in TERMINAL else None
    route = (result.route if result is not None else None) or read_route(view.route)
    note = result.cache if result is not None else route.lookup if route is not None else None
    if args.json:
        print(json.dumps(_record(view, events, result, route, note), ensure_ascii=False))
        return 0
    screen.show(*_head(view, result, route, note), "", _timeline(view, events, result))
    if route is not None and route.outlook:
        screen.show("", _tiers(route))
    if route is not None and route.placed is not None and route.placed.loads:
        screen.show("", _workers(route))
    return 0


def _record(
    view: JobView, events: Sequence[JobEvent], result: Result | None, route: Route | None, note: CacheNote | None
) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "id": view.id, "state": view.state, "priority": Priority(view.priority).name.lower(), "tenant": view.tenant,
        "attempt": view.attempt, "crashes": view.crashes, "retries": view.retries, "given_back": view.reason,
        "route": msgspec.to_builtins(route), "cache": msgspec.to_builtins(note),
        "timings": msgspec.to_builtins(result.timings) if result else None,
        "tier": result.tier if result else None, "worker": result.worker if result else None,
        "timeline": [{"ms": at_ms, "what": what} for at_ms, what in _steps(view, events, result)],
        "evidence": [msgspec.json.decode(each) for each in view.evidence],
    }  # fmt: skip
    return plain


def _head(view: JobView, result: Result | None, route: Route | None, note: CacheNote | None) -> list[str]:
    lines = [f"{screen.plain(view.id)}  {view.state}, {Priority(view.priority).name.lower()}, tenant {view.tenant}"]
    if route is None:
        return [*lines, "not routed yet" if result is None else "never routed"]
    level = f"{route.complexity} (score {route.score:.2f})"
    why = ", ".join(f"{name} {weight:+.2f}" for name, weight in route.features)
    lines.append(f"  asks for   {route.domain} (confidence {route.confidence:.2f}), {level}{': ' + why if why else ''}")
    lines.append(f"  tiers      {', '.join(route.tiers)} by {route.policy}; {screen.plain(route.reason)}")
    served = f"; served by {result.tier}" if result is not None and result.tier else ""
    waited = f"; was to wait for {' or '.join(route.queued)}" if route.queued else ""
    lines.append(f"  requested  {route.requested_tier or '-'}{waited}{served}")
    if note is not None:
        near = f" (nearest {note.score:.3f})" if note.score and note.kind == "miss" else ""
        lines.append(f"  cache      {note.kind}{near}{': ' + screen.plain(note.reason) if note.reason else ''}")
    if route.placed is not None:
        placed = route.placed
        lines.append(
            f"  placed     {placed.worker}: {placed.reason}; about {placed.expected_tokens:.0f} tokens expected"
        )
    if route.escalated:
        lines.append(f"  escalated  {screen.plain(route.escalated)}")
    return lines


def _steps(view: JobView, events: Sequence[JobEvent], result: Result | None) -> list[tuple[int, str]]:
    """(milliseconds after the submit, what happened). Only the first token of a run has a line."""
    steps, spoke = [(0, "submitted")], False
    for event in events:
        at_ms = int(event.cursor.partition("-")[0]) - view.submitted_ms
        if event.kind == "token":
            if not spoke:
                steps.append((at_ms, f"first text of attempt {event.attempt}"))
            spoke = True
        elif event.kind in ("started", "restarted"):
            steps.append((at_ms, f"{event.kind}, attempt {event.attempt}"))
            spoke = False
        elif event.kind != "queued":
            steps.append((at_ms, _ended(event.kind, result)))
        elif not event.data:
            steps.append((at_ms, "queued"))
    return steps


def _ended(kind: str, result: Result | None) -> str:
    if result is None:
        return kind
    error = f": {result.error.get('code')}: {result.error.get('message')}" if result.error else ""
    tokens = f", {result.tokens_generated} tokens" if result.tokens_generated else ""
    where = f" by {result.worker}" if result.worker else " from the cache" if result.from_cache else ""
    return f"{kind}{where}{tokens}{', ' + result.finish_reason if result.finish_reason else ''}{error}"


def _timeline(view: JobView, events: Sequence[JobEvent], result: Result | None) -> object:
    rows = [(f"{at_ms / 1000:.3f} s", screen.plain(what)) for at_ms, what in _steps(view, events, result)]
    if view.reason:
        rows.append(("", f"given back at the last: {screen.plain(view.reason)}"))
    if result is not None:
        times = result.timings
        rows.append(("", f"waited {times.queue_ms:.0f} ms, routed in {times.route_ms:.2f} ms, first token after "
                         f"{times.ttft_ms:.0f} ms, all in {times.total_ms:.0f} ms"))  # fmt: skip
    return screen.table((">after", "what"), rows)


def _tiers(route: Route) -> object:
    rows = [
        (each.tier, _seconds(each.wait_s), _seconds(each.run_s), "yes" if each.workers else "none",
         "yes" if each.tier in route.queued else "no")
        for each in route.outlook
    ]  # fmt: skip
    return screen.table(("tier", ">expected wait", ">run", "workers", "queued there"), rows)


def _workers(route: Route) -> object:
    placed = route.placed
    assert placed is not None
    rows = [
        (each.worker, _seconds(each.finish_s), each.jobs, each.room, each.waiting_tokens, f"{each.decode_rate:.0f}",
         "yes" if each.warm else "no", "chosen" if each.worker == placed.worker else "")
        for each in placed.loads
    ]  # fmt: skip
    headings = ("worker", ">predicted finish", ">jobs", ">room", ">prompt tokens ahead", ">tokens/s", "warm", "")
    return screen.table(headings, rows)


def _seconds(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} s"
