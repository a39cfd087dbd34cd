"""Stage 0 · command line · `check --explain`: what would run, and why, in words. Pure functions and a printer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from metamusesd.commands import estimate, screen
from metamusesd.config import EMBEDDED, Config
from metamusesd.config.origins import Origin
from metamusesd.control import WorkerSpec
from metamusesd.dispatcher.router import acceptable, routing_rules_of, views_of
from metamusesd.supervisor.cgroup import memory_limit
from metamusesd.supervisor.cpus import Cores
from metamusesd.supervisor.placement import Placement
from metamusesd.tiers import DOMAINS, GENERAL_TIERS

MIB = 1 << 20
LOST = {  # by appendfsync: what a power cut costs
    "always": "nothing that was accepted",
    "everysec": "up to about two seconds of accepted jobs",
    "no": "what the kernel had not written yet, up to half a minute",
}
POLICIES = {
    "strict": "no other tier ever takes its jobs",
    "prefer": "heavier ones, while it has no worker at all",
    "upgrade_ok": "heavier ones, when a job would be finished sooner there",
    "degrade_ok": "heavier and lighter ones, when a job would be finished sooner there",
}


def show(config: Config, places: Sequence[Origin], cores: Cores, placement: Placement, available: int) -> None:
    """Print the whole explanation. `available`: bytes of memory that are free for it."""
    parts = estimate.parts(config, placement.workers)
    screen.show(
        "[bold]configuration[/]", *_configuration(config, places), "",
        "[bold]workers[/]", *_workers(config, cores, placement), _worker_table(placement.workers), "",
        *_weights(config),
        "[bold]memory[/]", _memory_table(parts), *_memory(parts, available), "",
        "[bold]tiers[/]", *_tiers(config), "",
        "[bold]redis[/]", *_redis(config), "",
        "[bold]health[/]", *_health(config),
    )  # fmt: skip


def facts(config: Config, places: Sequence[Origin], placement: Placement) -> dict[str, Any]:
    """The same for programs."""
    parts = estimate.parts(config, placement.workers)
    return {
        "source": config.source,
        "options": [{"key": each.key, "value": each.value, "from": each.place} for each in places],
        "workers": [{"name": each.name, "model": each.model, "cores": list(each.cores), "gpus": list(each.gpus),
                     "slots": each.slots} for each in placement.workers],
        "placement": list(placement.lines),
        "weights": {name: asdict(choice) for name, choice in config.choices.items()},
        "memory": [{"part": each.name, "bytes": each.bytes_, "why": each.why, "gpu": each.on_gpu} for each in parts],
        "tiers": {wanted: list(served) for wanted, served in _served(config).items()},
        "sockets": {"health": str(config.health_socket), "redis": str(config.redis_socket)},
    }  # fmt: skip


def _configuration(config: Config, places: Sequence[Origin]) -> Iterator[str]:
    yield f"  {screen.plain(config.source)}"
    if not places:
        yield "  every option is at its default"
    width = max((len(place.key) for place in places), default=0)
    for place in places:
        yield f"  {place.key:<{width}} = {screen.plain(place.value)}   [dim]{screen.plain(place.place)}[/]"


def _workers(config: Config, cores: Cores, placement: Placement) -> Iterator[str]:
    numbers, physical = sorted(cores.numbers), sum(core.physical for core in cores.usable)
    quota = "no quota" if cores.quota is None else f"a quota of {cores.quota:g} CPUs"
    threads = "" if physical == len(numbers) else f", {physical} physical cores with second threads"
    yield f"  usable here: {len(numbers)} cores ({screen.numbers(numbers)}), {quota}{threads}"
    groups = [len(worker.cores) for worker in placement.workers]
    if any(groups):
        free = len(numbers) - sum(groups)
        yield f"  {' + '.join(map(str, groups))} = {sum(groups)} cores for workers; {free} left for everything else"
        if not free:
            yield "  dispatcher, vectors and Redis run beside the workers; set tiers.*.workers to leave them a core"
    for reason in placement.lines:
        yield f"  {screen.plain(reason)}"


def _weights(config: Config) -> Iterator[str]:
    """Models whose files were chosen for this host."""
    if config.choices:
        yield "[bold]weights[/]"
    for name, choice in config.choices.items():
        yield f"  {screen.plain(name)}: {screen.plain(choice.file)}; {choice.why}"
        if choice.remedy:
            yield f"    → {choice.remedy}"
    if config.choices:
        yield ""


def _worker_table(workers: Sequence[WorkerSpec]) -> object:
    rows = [
        [f"  {worker.name}", screen.plain(worker.model), f"gpu {' '.join(worker.gpus)}" if worker.gpus else
         screen.numbers(worker.cores), worker.threads, f"{worker.slots} + {worker.reserve_slots}"]
        for worker in workers
    ]  # fmt: skip
    return screen.table(("  worker", "model", "cores", ">threads", ">slots + reserve"), rows)


def _memory_table(parts: Sequence[estimate.Part]) -> object:
    rows = [
        [f"  {part.name}", f"{part.bytes_ / MIB:.0f}", f"{part.why}{' (GPU)' if part.on_gpu else ''}"] for part in parts
    ]
    return screen.table(("  part", ">MiB", "why"), rows)


def _memory(parts: Sequence[estimate.Part], available: int) -> Iterator[str]:
    usual, most = estimate.usual_bytes(parts), estimate.total_bytes(parts)
    yield f"  {usual / MIB:.0f} MiB soon after the start, {most / MIB:.0f} MiB at most with a full queue and cache"
    verdict = (
        "it fits" if most <= available else "a full queue does not fit" if usual <= available else "it does NOT fit"
    )
    limited = "" if memory_limit() is None else " (a cgroup limit)"
    yield f"  available now: {available / MIB:.0f} MiB{limited}: {verdict}"


def _served(config: Config) -> dict[str, tuple[str, ...]]:
    """By what a prompt wants, the tiers that may serve it."""
    rules, views = routing_rules_of(config), views_of(config)
    return {wanted: acceptable(wanted, views, rules) for wanted in (*GENERAL_TIERS, *DOMAINS[1:])}


def _tiers(config: Config) -> Iterator[str]:
    policy = config.routing.policy
    yield f"  routing.policy = {policy}: besides the tier that a prompt wants, {POLICIES[policy]}"
    levels = dict(zip(GENERAL_TIERS, ("simple", "moderate", "complex"), strict=True))
    for wanted, served in _served(config).items():
        asks = f"{levels[wanted]} prompts" if wanted in levels else f"{wanted} prompts"
        instead = "" if wanted in served else f" ({wanted} is not enabled)"
        yield f"  {asks:<18} → {', then '.join(served)}{instead}"
    for name, tier in config.enabled_tiers().items():
        yield f"  {name}: {', '.join(screen.plain(model) for model in tier.models)}"


def _redis(config: Config) -> Iterator[str]:
    if config.redis.url == EMBEDDED:
        yield f"  embedded: a private server on {config.redis_socket}, files in {config.state_dir / 'redis'}"
        yield f"  appendfsync {config.redis.appendfsync}: a power cut loses {LOST[config.redis.appendfsync]}"
        yield "  killing any of our processes loses nothing"
    else:
        kind = config.redis.url.partition("://")[0]
        yield f"  {kind}: keys begin with the prefix {config.redis.prefix}; hosts that share both share the queue"
        yield "  what survives a power cut is that server's appendonly and appendfsync: `metamusesd doctor` asks it"
    yield f"  bounds: {config.queue.max_jobs} jobs, {config.queue.max_bytes // MIB} MiB of bodies"


def _health(config: Config) -> Iterator[str]:
    for path in ("livez", "readyz", "status", "metrics"):
        yield f"  curl --unix-socket {config.health_socket} http://d/{path}"
    if config.health.tcp:
        yield f"  curl http://{config.health.tcp}/metrics"
