"""Stage 10 · command line · the queue over all hosts: what waits where and who serves it; with a filter, the jobs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from metamusesd import cli
from metamusesd.client import Client
from metamusesd.commands import screen
from metamusesd.commands.advice import CLASSES
from metamusesd.commands.dead import clean
from metamusesd.commands.producer import produce
from metamusesd.commands.status import duration
from metamusesd.job import Priority
from metamusesd.queues.base import INGRESS, Depth, Host
from metamusesd.queues.census import LiveJob
from metamusesd.tiers import TIERS

STATES = ("queued", "ready", "running", "following", "delayed")
PAGE = 1000
COUNT = 50
SORTS: dict[str, Callable[[LiveJob], Any]] = {
    "age": lambda job: job.submitted_ms,
    "class": lambda job: (-job.priority, job.submitted_ms),
    "tenant": lambda job: (job.tenant, job.submitted_ms),
    "state": lambda job: (STATES.index(job.state) if job.state in STATES else len(STATES), job.submitted_ms),
    "running": lambda job: (not job.claimed_ms, job.claimed_ms or job.submitted_ms),
}


def add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="the jobs themselves; so does any of the filters")
    parser.add_argument("--tier", metavar="TIER", help="only those that run in it or may; ingress: not routed yet")
    parser.add_argument("--tenant", metavar="NAME", help="only those of one tenant")
    parser.add_argument("--class", dest="class_", choices=CLASSES, help="only those of one class")
    parser.add_argument("--state", choices=STATES, help="only those that stand so")
    parser.add_argument("--sort", choices=[*SORTS], help="default: age, oldest first; running: longest run first")
    parser.add_argument("--count", type=int, default=COUNT, metavar="N", help=f"at most so many (default: {COUNT})")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.epilog = (
        "A job stands in the queue of every tier that may serve it: the table of queues may count it more than once, "
        "the list has it once. Jobs that have ended: `metamusesd explain ID`; quarantined ones: `metamusesd dead list`."
    )


def jobs(args: argparse.Namespace) -> int:
    """Ask the queue itself; what one daemon does is in `metamusesd status`."""
    asked = args.list or any((args.tier, args.tenant, args.class_, args.state, args.sort))
    work = _list if asked else _overview
    return produce(cli.configuration(args), lambda client: work(client, args))


async def _overview(client: Client, args: argparse.Namespace) -> int:
    hosts = await client.hosts()
    served = {tier for host in hosts for tier in host.tiers}
    depths = await client.depths([INGRESS, *TIERS, *sorted(served - set(TIERS))])
    shown = [depth for depth in depths if sum(depth.by_class) or depth.queue in served or depth.queue == INGRESS]
    living = await client.living()
    if args.json:
        queues = {depth.queue: _counts(depth) | {"oldest_ms": depth.oldest_ms} for depth in shown}
        told = {"living": living, "queues": queues, "hosts": [asdict(host) for host in hosts]}
        print(json.dumps(told, ensure_ascii=False))
        return 0
    unfinished = f"{living} jobs have not ended" + ("; `metamusesd jobs --list` has them" if living else "")
    screen.show(
        _queues(shown), "", _hosts(hosts) if hosts else "no live host: nobody serves this queue", "", unfinished
    )
    return 0


async def _list(client: Client, args: argparse.Namespace) -> int:
    """Go through all of them; print the first `--count` that fit, and how many more there are."""
    now_ms, found, living = 0, list[LiveJob](), await client.living()
    for skip in range(0, living, PAGE):
        now_ms, page = await client.live(skip, PAGE)
        found += [job for job in page if fits(job, args)]
    found.sort(key=SORTS[args.sort or "age"])
    shown = found[: max(1, args.count)]
    if args.json:
        told = {"jobs": [_facts(job, now_ms) for job in shown], "fit": len(found), "living": living}
        print(json.dumps(told, ensure_ascii=False))
        return 0
    if not found:
        print(f"none of {living} jobs fits" if living else "no job is in the queue")
        return 0
    screen.show(_jobs(shown, now_ms))
    if len(found) > len(shown):
        print(f"{len(found) - len(shown)} more; --count {len(found)} shows all")
    return 0


def fits(job: LiveJob, args: argparse.Namespace) -> bool:
    """Whether it passes every filter that is given."""
    places = (job.queue,) if job.queue else job.tiers or (INGRESS,)
    return (
        (not args.tier or args.tier in places)
        and (not args.tenant or job.tenant == args.tenant)
        and (not args.class_ or _class(job) == args.class_)
        and (not args.state or job.state == args.state)
    )


def _facts(job: LiveJob, now_ms: int) -> dict[str, Any]:
    return asdict(job) | {"class": _class(job), "age_ms": now_ms - job.submitted_ms,
                          "running_ms": now_ms - job.claimed_ms if job.claimed_ms else None}  # fmt: skip


def _class(job: LiveJob) -> str:
    known = job.priority in Priority._value2member_map_
    return Priority(job.priority).name.lower() if known else str(job.priority)


def _jobs(shown: Iterable[LiveJob], now_ms: int) -> object:
    rows = [
        [
            screen.plain(clean(job.id)), job.state, _class(job), screen.plain(clean(job.tenant)),
            screen.plain(clean(job.queue or " ".join(job.tiers) or INGRESS)),
            duration((now_ms - job.submitted_ms) / 1000),
            duration((now_ms - job.claimed_ms) / 1000) if job.claimed_ms else "-",
            clean(job.owner.partition(":")[0][:8]) or "-", job.attempt, job.crashes or "-",
        ]
        for job in shown
    ]  # fmt: skip
    headings = ("id", "state", "class", "tenant", "tier", ">age", ">running", "host", ">attempt", ">crashes")
    return screen.table(headings, rows, spare=(">crashes", ">attempt", "host", "tenant"))


def _counts(depth: Depth) -> dict[str, int]:
    return dict(zip(CLASSES, reversed(depth.by_class), strict=True))


def _queues(depths: list[Depth]) -> object:
    rows = []
    for depth in depths:
        waiting = sum(depth.by_class)
        oldest = duration(depth.oldest_ms / 1000) if waiting else "-"
        rows.append([depth.queue, *_counts(depth).values(), waiting, oldest])
    return screen.table(("queue", *(f">{kind}" for kind in CLASSES), ">waiting", ">oldest"), rows)


def _hosts(hosts: list[Host]) -> object:
    rows = [
        [host.owner[:8], tier, screen.plain(service.model), service.workers, service.free,
         f"{service.start_hz:.2f}".replace("0.00", "-")]
        for host in hosts
        for tier, service in host.tiers.items()
    ]  # fmt: skip
    return screen.table(("host", "tier", "model", ">workers", ">free", ">jobs/s"), rows)
