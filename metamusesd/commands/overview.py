"""Stage 10 · command line · the whole queue at a glance, over all hosts: what waits where, and who serves it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from metamusesd import cli
from metamusesd.client import Client
from metamusesd.commands import screen
from metamusesd.commands.advice import CLASSES
from metamusesd.commands.producer import produce
from metamusesd.commands.status import duration
from metamusesd.queues.base import INGRESS, Depth, Host
from metamusesd.tiers import TIERS


def add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.epilog = "A job stands in the queue of every tier that may serve it, so a job may be counted more than once."


def jobs(args: argparse.Namespace) -> int:
    """Ask the queue itself; what one daemon does is in `metamusesd status`."""
    return produce(cli.configuration(args), lambda client: _jobs(client, args))


async def _jobs(client: Client, args: argparse.Namespace) -> int:
    hosts = await client.hosts()
    served = {tier for host in hosts for tier in host.tiers}
    depths = await client.depths([INGRESS, *TIERS, *sorted(served - set(TIERS))])
    shown = [depth for depth in depths if sum(depth.by_class) or depth.queue in served or depth.queue == INGRESS]
    if args.json:
        queues = {depth.queue: _counts(depth) | {"oldest_ms": depth.oldest_ms} for depth in shown}
        print(json.dumps({"queues": queues, "hosts": [asdict(host) for host in hosts]}, ensure_ascii=False))
    else:
        screen.show(_queues(shown), "", _hosts(hosts) if hosts else "no live host")
    return 0


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
        [host.owner, tier, screen.plain(service.model), service.free, f"{service.start_hz:.2f}".replace("0.00", "-")]
        for host in hosts
        for tier, service in host.tiers.items()
    ]
    return screen.table(("host", "tier", "model", ">free", ">jobs/s"), rows)
