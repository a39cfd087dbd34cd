"""Stage 0 · command line · how the running daemon is, on one screen, and what to do about it.

Exit codes: 0 ready; 1 degraded: work is done, something wants a look; 75 not ready: no work is taken now; 69 no daemon.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from metamusesd import cli
from metamusesd.commands import health, redis_facts, screen
from metamusesd.commands.advice import CLASSES, Complaint, advise, health_of
from metamusesd.config import Config

COLOURS = {"ready": "green", "degraded": "yellow", "not ready": "red", "failed": "red", "backoff": "red",
           "starting": "yellow"}  # fmt: skip
EXIT_BY_HEALTH = {"ready": 0, "degraded": 1, "not ready": 75}
REDIS_S = 1.0  # how long Redis may take to say what is quarantined, and how it is; then that is left out
SPARE = ("slots", ">pid", ">generated", ">prefill/s", "cores", ">RSS", ">KV")  # a narrow terminal goes without

Rates = Mapping[str, float]  # tokens/s by worker


def add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="what the daemon says, and the complaints, as one line")
    parser.epilog = (
        "exit codes: 0 ready, 1 degraded (work is done, something wants a look), 75 not ready (no work is taken now), "
        "69 no daemon. Each complaint stands with its remedy."
    )


def status(args: argparse.Namespace) -> int:
    """Print one frame; the exit code says how the daemon is."""
    config = cli.configuration(args)
    answer = health.status(config)
    complaints = complaints_of(answer, config)
    if args.json:
        told = [
            {"grade": "bad" if each.bad else "warn", "text": each.text, "remedy": each.remedy} for each in complaints
        ]
        print(json.dumps(answer | {"health": health_of(complaints), "complaints": told}, ensure_ascii=False))
    else:
        screen.show(*frame(answer, complaints=complaints))
    return EXIT_BY_HEALTH[health_of(complaints)]


def complaints_of(answer: Mapping[str, Any], config: Config) -> list[Complaint]:
    """What /status tells, and what its Redis tells: an idle dispatcher has not met a full memory yet."""
    if not answer.get("dispatcher", {}).get("redis_ok") or answer.get("reasons"):
        return advise(answer, config)
    facts = redis_facts.ask_redis(config, REDIS_S)
    found = [] if facts.trouble else redis_facts.of_redis(config, facts, "")
    asked = [Complaint(f"redis: {each.fact}", each.remedy) for each in found if each.grade == "bad"]
    return [*asked, *advise(answer, config, facts.dead)]


def frame(answer: dict[str, Any], measured: Rates | None = None, complaints: Sequence[Complaint] = (), *,
          top: bool = False) -> list[object]:  # fmt: skip
    """Headline, workers, vectors, queues, complaints; for `top` these come before the tables, whose end a short screen
    may cut off. `measured` replaces the workers' own moving averages."""
    told: list[object] = []
    for complaint in complaints:
        colour = "red" if complaint.bad else "yellow"
        told += ["", f"[{colour}]{screen.plain(complaint.text)}[/]", f"  → {screen.plain(complaint.remedy)}"]
    tables: list[object] = ["", _workers(answer.get("workers", []), measured)]
    tables += [_vectors(vectors)] if (vectors := answer.get("vectors")) else []
    tables += ["", _queues(answer.get("queues", {}))]
    return [_headline(answer, complaints), *(told + tables if top else tables + told)]


def _headline(answer: dict[str, Any], complaints: Sequence[Complaint]) -> str:
    state, dispatcher, redis = answer.get("state", "?"), answer.get("dispatcher", {}), answer.get("redis", {})
    if state in ("ready", "degraded"):
        state = health_of(complaints)
    workers = answer.get("workers", [])
    ready, asleep = (sum(worker.get("status") == status for worker in workers) for status in ("ready", "asleep"))
    trouble = dispatcher.get("redis_trouble", "none")
    reach = f"[red]redis {'down' if trouble == 'none' else trouble.replace('_', ' ')}[/]"
    if dispatcher.get("redis_ok") and trouble == "none":
        reach = "redis up"
    place = ("embedded, " if redis.get("embedded") else "") + redis.get("url", "").removeprefix("unix://")
    parts = [
        f"metamusesd {answer.get('version', '')} {coloured(state)}",
        f"up {duration(answer.get('uptime_s', 0))}",
        f"{ready}/{len(workers)} workers{f' ({asleep} asleep)' if asleep else ''}",
        f"{dispatcher.get('running', 0)} running, {dispatcher.get('settled', 0)} settled",
        f"{reach} ({screen.plain(place)})",
    ]
    if dispatcher.get("stale"):
        parts.append("[red]dispatcher's figures are stale[/]")
    return " · ".join(parts)


def _workers(workers: list[dict[str, Any]], measured: Rates | None) -> object:
    headings = ["worker", "status", ">pid", "model", "cores", "slots", ">used", ">tokens/s", ">prefill/s", ">KV",
                ">RSS", ">generated", ">restarts"]  # fmt: skip
    rows = [_worker_row(worker, measured) for worker in workers]
    if any(worker.get("vram_total_bytes") for worker in workers):
        headings.insert(11, ">VRAM")
        rows = [[*row[:11], _vram(worker), *row[11:]] for row, worker in zip(rows, workers, strict=True)]
    return screen.table(headings, rows, spare=SPARE)


def _vram(worker: dict[str, Any]) -> str:
    """Of its GPUs, used by anybody."""
    total, used = worker.get("vram_total_bytes", 0), worker.get("vram_used_bytes", 0)
    return f"{screen.size(used)} of {screen.size(total)}" if total else "-"


def _worker_row(worker: dict[str, Any], measured: Rates | None) -> list[str]:
    used, slots = worker.get("slots_used", 0), worker.get("slots", 0)
    name = worker.get("name", "?")
    rate = worker.get("decode_tokens_s", 0.0) if measured is None else measured.get(name, 0.0)
    state = worker.get("status", "?")
    loading = state == "starting"
    mode = next((word for word in ("drained", "recycling") if worker.get(word)), worker.get("state"))
    doing = f" {mode}" if state == "ready" else ""
    if loading:
        used, slots = round(100 * worker.get("loaded", 0.0)), 100
    held = f"{used}/{slots}" + (f" (+{worker['preempted']} wait)" if worker.get("preempted") else "")
    held = f"loading {used} %" if loading else held
    where = [f"gpu {gpu}" for gpu in worker.get("gpus", [])] or [screen.numbers(worker.get("cores", []))]
    return [
        name, coloured(state) + doing, str(worker.get("pid") or "-"), worker.get("model", ""), " ".join(where),
        screen.bar(used, slots), held, f"{rate:.0f}", f"{worker.get('prefill_tokens_s', 0):.0f}",
        f"{worker.get('kv_usage', 0):.0%}", screen.size(worker.get("rss_bytes", 0)),
        str(worker.get("generated_tokens", 0)), str(worker.get("restarts", 0)),
    ]  # fmt: skip


def _vectors(vectors: dict[str, Any]) -> str:
    """The semantic cache's process on one line."""
    state = vectors.get("status", "?")
    doing = " tending its store" if state == "ready" and vectors.get("tending") else ""
    parts = [
        f"vectors {coloured(state)}{doing}",
        f"pid {vectors.get('pid') or '-'}",
        f"{vectors.get('entries', 0)} answers",
        f"{vectors.get('hits', 0)} hits, {vectors.get('misses', 0)} misses, {vectors.get('failures', 0)} failures",
        f"{vectors.get('text_ms', 0):.1f} ms a text",
        f"RSS {screen.size(vectors.get('rss_bytes', 0))}",
        f"{vectors.get('restarts', 0)} restarts",
    ]
    return " · ".join(parts)


def _queues(queues: dict[str, Any]) -> object:
    rows = []
    for name, depth in queues.get("by_queue", {}).items():
        waiting = [depth.get(kind, 0) for kind in CLASSES]
        oldest_ms = depth.get("oldest_ms", 0)
        if sum(waiting) or name in ("ingress", "fast"):
            oldest = duration(oldest_ms / 1000) if sum(waiting) else "-"
            rows.append([name, *map(str, waiting), str(sum(waiting)), oldest])
    return screen.table(("queue", *(f">{kind}" for kind in CLASSES), ">waiting", ">oldest"), rows)


def coloured(state: str) -> str:
    """A state in its colour."""
    return f"[{COLOURS.get(state, 'default')}]{state}[/]"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if hours == 0:
        return f"{minutes} min {int(seconds % 60)} s"
    return f"{hours} h {minutes % 60} min" if days == 0 else f"{days} d {hours % 24} h"
