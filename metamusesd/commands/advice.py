"""Stage 0 · command line · what is wrong with a running daemon and what to do. Pure: /status in, complaints out.

Each complaint is one fact and one remedy: what to run, which option to change, which file to read. `bad`: no work is
taken; `warn`: work is taken and done, and something wants a look.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from metamusesd.config import Config

CLASSES = ("critical", "high", "normal", "low")
LOG = "its line `child died` in the log"
LATELY_S = 300.0  # a worker that was replaced within so long is still worth a word
SERVING = ("ready", "asleep")  # one that sleeps comes back for the first job
STOPPING = ("draining", "stopping", "stopped")
TROUBLES = {  # by the kind of trouble of Redis
    "unreachable": "start that Redis or mend the network to it; nothing else is needed: models stay loaded, jobs wait",
    "loading": "wait: it reads its append-only file, which may take minutes",
    "memory": "raise its maxmemory, or wait for jobs to end; lower queue.max_bytes and cache.max_bytes to bound it",
    "read_only": "it is a replica: promote it, or let redis.url lead to the master (sentinel://host:port/NAME)",
    "disk": "free its disk; it goes on by itself: `df -h`, and redis-cli INFO persistence says what it could not write",
    "busy": "wait; if it lasts, a foreign script holds it: redis-cli SCRIPT KILL, or a fail-over lacks a replica",
    "denied": "correct user, password or ACL in redis.url; the user needs all commands on the keys of redis.prefix",
    "policy": "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in its file; at least Redis 6.2",
    "fault": "another program wrote a key under redis.prefix; the log names script and key: move or delete that key",
}


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something that is wrong, and what mends it."""

    text: str
    remedy: str
    bad: bool = False


def advise(answer: Mapping[str, Any], config: Config, quarantined: int = 0) -> list[Complaint]:
    """`answer` is /status; `quarantined` how many jobs stand in the quarantine. The worst come first."""
    found = [Complaint(reason, _remedy(reason, answer, config), bad=True) for reason in answer.get("reasons", [])]
    found += _drains(answer)
    found += _tiers(answer, config)
    for worker in answer.get("workers", []):
        found += _worker(worker, config)
    found += _queues(answer.get("queues", {}), config)
    found += [Complaint(text, _limitation(text)) for text in answer.get("degraded", [])]
    if quarantined:
        jobs = "1 job is" if quarantined == 1 else f"{quarantined} jobs are"
        found.append(Complaint(
            f"{jobs} quarantined: workers died under {'it' if quarantined == 1 else 'them'}",
            "`metamusesd dead list`, then `dead show ID` for the evidence, and `dead retry ID` or `dead drop ID`",
        ))  # fmt: skip
    return sorted(found, key=lambda complaint: not complaint.bad)


def health_of(complaints: Iterable[Complaint]) -> str:
    """ready, degraded, or not ready."""
    grades = {complaint.bad for complaint in complaints}
    return "not ready" if True in grades else "degraded" if grades else "ready"


def _remedy(reason: str, answer: Mapping[str, Any], config: Config) -> str:
    """For a sentence of /readyz; see supervisor/report.py."""
    state, trouble = answer.get("state", ""), answer.get("dispatcher", {}).get("redis_trouble", "none")
    if reason.startswith("the daemon is"):
        if state in STOPPING:
            return "it gives its jobs back and ends within daemon.drain_s; a second SIGTERM ends it at once"
        return "wait: models load; `metamusesd top` shows how far they are"
    if reason.startswith("every worker is drained"):
        return "jobs wait in the queue, caches go on answering; undrain when the maintenance is over"
    if reason.startswith("no worker"):
        return "see the workers below; jobs wait in the queue meanwhile"
    if reason.startswith(("the dispatcher is", "the dispatcher's heartbeat", "the dispatcher has no heartbeat")):
        return f"it is replaced by itself, models stay loaded; if it comes again: {LOG}, {config.evidence_dir}"
    if reason.startswith("redis is ") and answer.get("redis", {}).get("status", "ready") != "ready":
        return f"it starts again by itself; what it has to say: {config.state_dir / 'redis' / 'redis.log'}"
    return TROUBLES.get("unreachable" if trouble == "none" else trouble, "`metamusesd doctor` looks further")


def _drains(answer: Mapping[str, Any]) -> Iterator[Complaint]:
    """Some of the workers; that all of them are is a reason of /readyz."""
    workers = answer.get("workers", [])
    names = [worker.get("name", "?") for worker in workers if worker.get("drained")]
    if names and len(names) < len(workers):
        yield Complaint(
            f"drained: {', '.join(names)}", f"`metamusesd undrain --worker {names[0]}` to let it work again"
        )


def _tiers(answer: Mapping[str, Any], config: Config) -> Iterator[Complaint]:
    """Tiers that nobody serves, while others are served."""
    workers = answer.get("workers", [])
    serving = {worker.get("tier") for worker in workers if worker.get("status") in SERVING}
    for tier in dict.fromkeys(worker.get("tier", "?") for worker in workers):
        if serving and tier not in serving:
            load = [f"{worker.get('loaded', 0):.0%}" for worker in workers if _loads(worker, tier)]
            doing = f"its models load ({', '.join(load)}): wait" if load else "see its workers below"
            yield Complaint(
                f"tier {tier} has no worker",
                f"{doing}; after queue.strand_s ({config.queue.strand_s:g} s) its jobs go to other tiers that may help",
            )


def _loads(worker: Mapping[str, Any], tier: str) -> bool:
    return worker.get("tier") == tier and worker.get("status") == "starting"


def _worker(worker: Mapping[str, Any], config: Config) -> Iterator[Complaint]:
    name, status, ended = worker.get("name", "?"), worker.get("status"), worker.get("last_exit") or "unknown"
    said = (worker.get("last_error") or {}).get("message")
    why = f"{ended}{f': {said}' if said else ''}"
    stacks = f"{config.evidence_dir}/{name}-*.stacks"
    if status == "backoff":
        yield Complaint(
            f"{name} is in back-off: it died ({why}), {worker.get('restarts', 0)} restarts",
            f"it starts again by itself; why it died: {LOG}, {stacks}; a job that kills it: `metamusesd dead list`",
        )
    elif status == "failed":
        yield Complaint(
            f"{name} has failed ({why}) and is not started again",
            f"`metamusesd check` names a bad model file or option; else {LOG}, {stacks}; then restart the daemon",
        )
    elif status == "starting" and worker.get("restarts"):
        yield Complaint(f"{name} starts again: it died ({why})", f"wait; why it died: {LOG}, {stacks}")
    elif status == "ready" and worker.get("restarts") and worker.get("since_s", LATELY_S) < LATELY_S:
        yield Complaint(f"{name} was replaced {worker['since_s']:.0f} s ago ({why})", f"{LOG}, {stacks}")


def _queues(queues: Mapping[str, Any], config: Config) -> Iterator[Complaint]:
    """Jobs that have waited longer than every class that waits there should."""
    if queues.get("stale"):
        return  # the dispatcher's own complaint says it
    for queue, depth in queues.get("by_queue", {}).items():
        waiting = [name for name in CLASSES if depth.get(name)]
        limits = {name: config.classes[name].max_wait_s for name in waiting if config.classes[name].max_wait_s > 0}
        oldest_s = depth.get("oldest_ms", 0) / 1000
        if limits and oldest_s > (most_s := max(limits.values())):
            slowest = max(limits, key=lambda name: limits[name])
            yield Complaint(
                f"{queue}: the oldest job has waited {oldest_s:.0f} s; class {slowest} should wait {most_s:g} s",
                _relief(queue, slowest),
            )


def _relief(queue: str, slowest: str) -> str:
    look = f"who waits: `metamusesd jobs --tier {queue}`"
    if queue == "ingress":
        return f"nothing routes: look at the dispatcher above; {look}"
    return (
        f"{look}; add workers (tiers.{queue}.workers) or slots, let heavier tiers help (routing.policy = upgrade_ok), "
        f"or refuse late jobs (classes.{slowest}.timeout_s)"
    )


def _limitation(text: str) -> str:
    """For a sentence of `degraded`: many name their remedy themselves."""
    if "metamusesd models fetch" in text or "pip install" in text:
        return "jobs go on without it; cache.semantic = false if you want none"
    if text.startswith("semantic cache"):
        return f"lookups are misses meanwhile, jobs go on; it recovers by itself, else {LOG}; `metamusesd cache stats`"
    return "the log says more; `metamusesd doctor` looks further"
