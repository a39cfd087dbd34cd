"""Faults benchmark · bench process · what may not be left: keys without a TTL, live sets, processes, descriptors."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.family import Family, descriptors, rss_mb
from benchmarks.faults.oracle import Violation
from benchmarks.faults.raw import PREFIX
from benchmarks.faults.resp import Redis

PERMANENT = frozenset(
    {"seq", "protocol", "limits", "turns", "hosts"}
)  # keys that live without a TTL, for as long as the queue
LIVE_SETS = ("live", "ingress", "leases", "delayed", "deadlines")
MOST_NAMED = 5
SETTLE_S = 30.0
RECOUNT_S = 90.0  # the reaper counts anew every half minute, and so mends what foreign hands have spoilt
MORE_DESCRIPTORS = {"supervisor": 2, "dispatcher": 20, "redis": 40}  # the dispatcher keeps idle connections; workers: 2
MEMORY_FACTOR, MEMORY_MB = 1.5, 48.0


@dataclass(frozen=True, slots=True)
class Census:
    """The family at one moment, by role (a worker's is its name)."""

    size: int
    descriptors: dict[str, int] = field(default_factory=dict)
    memory_mb: dict[str, float] = field(default_factory=dict)
    segments: frozenset[str] = frozenset()


async def census(family: Family) -> Census:
    """Count now."""
    pids = await family.pids()
    return Census(
        size=1 + len(family.kids()),
        descriptors={name: descriptors(pid) for name, pid in pids.items()},
        memory_mb={name: rss_mb(pid) for name, pid in pids.items()},
        segments=frozenset(os.listdir("/dev/shm")),
    )


async def keys(redis: Redis) -> list[Violation]:
    """Every key has a TTL or belongs to the few permanent ones; no live set holds anything; no counter is left."""
    found, forever = [], []
    ready = []
    async for name, ttl_ms in _all_keys(redis):
        short = name.removeprefix(f"{PREFIX}:")
        if ttl_ms == -1 and short not in PERMANENT and short != "counters":
            forever.append(name)
        if short.startswith("ready:"):
            ready.append(short)
    if forever:
        text = f"{len(forever)} keys without a TTL: {', '.join(sorted(forever)[:MOST_NAMED])}"
        found.append(Violation("keys", forever[0].rpartition(":")[2], text))
    for name in (*LIVE_SETS, *ready):
        if left := await redis.ask("ZRANGE", f"{PREFIX}:{name}", 0, MOST_NAMED):
            ids = [id.decode() for id in left]
            found.append(Violation("live sets", ids[0], f"{name} holds {', '.join(ids)}"))
    words = await redis.ask("HGETALL", f"{PREFIX}:counters")
    counters = {name.decode(): int(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    if any(counters.values()):
        found.append(Violation("counters", "", f"{counters} although no job lives"))
    return found


async def drained(redis: Redis, limit_s: float = RECOUNT_S) -> None:
    """Until nothing lives, or the limit is reached: the checks say what is left then."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        counts = await redis.ask_all([("ZCARD", f"{PREFIX}:{name}") for name in LIVE_SETS])
        if not any([*counts, await redis.ask("EXISTS", f"{PREFIX}:counters")]):
            return
        await asyncio.sleep(0.1)


async def family(kin: Family, before: Census) -> tuple[list[Violation], Census]:
    """The same processes as at the start, about as many descriptors, about as much memory."""
    end_s = time.monotonic() + SETTLE_S
    while (after := await census(kin)).size != before.size and time.monotonic() < end_s:
        await asyncio.sleep(0.2)
    found = []
    strangers = kin.marked() - {*kin.kids(), kin.process.pid if kin.process else 0}
    if after.size != before.size or strangers:
        text = f"{before.size} processes at the start, {after.size} now; not its children: {sorted(strangers)}"
        found.append(Violation("processes", "", text))
    workers = max((count for name, count in before.descriptors.items() if "-" in name), default=0)
    for name, count in after.descriptors.items():
        usual = max(before.descriptors.get(name, 0), workers if "-" in name else 0)  # poison may just have ended one
        if count > usual + MORE_DESCRIPTORS.get(name, 2):
            found.append(Violation("descriptors", name, f"{count} open, {usual} after warm-up"))
    for name, size_mb in after.memory_mb.items():
        limit_mb = before.memory_mb.get(name, 0.0) * MEMORY_FACTOR + MEMORY_MB
        if name != "redis" and size_mb > limit_mb:
            text = f"{size_mb:.0f} MB, {before.memory_mb.get(name, 0):.0f} MB after warm-up"
            found.append(Violation("memory", name, text))
    return found, after


async def nothing(kin: Family, before: Census) -> list[Violation]:
    """After the stop: no process, no socket, no segment."""
    found = []
    if left := await kin.buried(kin.marked()):
        found.append(Violation("processes", "", f"still there after the stop: {sorted(left)}"))
    sockets = [path.name for path in Path(kin.folder / "s").rglob("*") if path.is_socket()]
    segments = [name for name in os.listdir("/dev/shm") if name not in before.segments and _orphaned(name)]
    if sockets or segments:
        found.append(Violation("sockets and segments", "", f"left behind: {', '.join(sockets + segments)}"))
    return found


def _orphaned(name: str) -> bool:
    """No living process maps it: other programs of this host may come and go meanwhile."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if f"/dev/shm/{name}" in maps.read_text():
                return False
        except OSError:
            continue
    return True


async def _all_keys(redis: Redis):  # type: ignore[no-untyped-def]
    """(name, TTL in milliseconds; -1: none) of every key, each at least once."""
    cursor = b"0"
    while True:
        cursor, names = await redis.ask("SCAN", cursor, "COUNT", 500)
        ttls = await redis.ask_all([("PTTL", name) for name in names]) if names else []
        for name, ttl_ms in zip(names, ttls, strict=True):
            yield name.decode(), ttl_ms
        if cursor == b"0":
            return
