"""Stage 0 · command line · the configured Redis, for `doctor` and `status`: whether it keeps jobs, how quick it is.

Asks INFO, CONFIG GET and some PINGs, and who else serves the queue. A managed server may refuse CONFIG: that is a
finding, and no error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from metamusesd.commands.premises import mode_of
from metamusesd.commands.symptoms import MIB, Finding
from metamusesd.config import EMBEDDED, Config
from metamusesd.errors import MetamusesdError
from metamusesd.queues.base import Host
from metamusesd.queues.limits import limits_of
from metamusesd.queues.redis_door import RedisDoor
from metamusesd.queues.redis_queue import RedisQueue

PINGS = 50
TIMEOUT_S = 5.0
MOST_DEAD = 1000
SLOW_S = 0.005  # a job is four calls one after another
OPTIONS = ("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """What the server says. `trouble`: it could not be asked."""

    info: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)  # empty: it does not tell
    pings_s: tuple[float, ...] = ()
    hosts: tuple[Host, ...] = ()
    dead: int = 0  # quarantined jobs, as far as MOST_DEAD
    trouble: str = ""


def ask_redis(config: Config, timeout_s: float = TIMEOUT_S) -> RedisFacts:
    """Blocks for `timeout_s` at most. Changes nothing."""
    try:
        return asyncio.run(_ask(config, timeout_s))
    except MetamusesdError as error:
        return RedisFacts(trouble=error.message)
    except TimeoutError:
        return RedisFacts(trouble=f"no answer within {timeout_s:g} s")


async def _ask(config: Config, timeout_s: float) -> RedisFacts:
    queue = RedisQueue(config.redis_url, config.redis.prefix, limits_of(config), timeout_s=timeout_s)
    door = RedisDoor(config.redis_url, queue.prefix, timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            text = (await door.ask("INFO", "everything")).decode("utf-8", "replace")
            options: dict[str, str] = {}
            for name in OPTIONS:
                try:
                    reply = await door.ask("CONFIG", "GET", name)
                except MetamusesdError:
                    break
                options |= {name: reply[1].decode()} if len(reply) > 1 else {}
            hosts, dead = tuple(await queue.hosts()), len(await queue.dead(MOST_DEAD))
            return RedisFacts(_info(text), options, await _pings(door), hosts, dead)
    finally:
        door.close()
        await queue.close()


async def _pings(door: RedisDoor) -> tuple[float, ...]:
    found = []
    for _ in range(PINGS):
        begun_s = time.perf_counter()
        await door.ask("PING")
        found.append(time.perf_counter() - begun_s)
    return tuple(sorted(found))


def _info(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name: value.strip() for name, _, value in pairs}


def of_redis(config: Config, facts: RedisFacts, instance: str) -> Iterator[Finding]:
    """`instance`: the UUID of this state directory, whose own announcements are no strangers'."""
    if facts.trouble and config.redis.url == EMBEDDED and mode_of(config.redis_socket) is None:
        yield Finding("redis", "ok", "embedded: it starts with the daemon, and is asked then")
        return
    if facts.trouble:
        remedy = "start it, or correct redis.url; the daemon waits for it"
        yield Finding("redis", "bad", facts.trouble, "no job can be taken, or none from here", remedy)
        return
    yield from _persistence(config, facts)
    yield from _memory(config, facts)
    yield from _latency(facts)
    yield from _hosts(config, facts, instance)


def _persistence(config: Config, facts: RedisFacts) -> Iterator[Finding]:
    info, options, where = facts.info, facts.options, "redis-cli CONFIG SET"
    for field_, words in (("aof_last_write_status", "write to its append-only file"),
                          ("aof_last_bgrewrite_status", "rewrite of its append-only file")):  # fmt: skip
        if info.get(field_, "ok") != "ok":
            yield Finding("redis", "bad", f"its last {words} failed", "what it accepts now may be lost",
                          "free its disk (`df -h`), look at its log, then redis-cli BGREWRITEAOF")  # fmt: skip
    if info.get("aof_enabled") == "0":
        yield Finding("redis", "warn", "no append-only file (appendonly no)", "a restart of Redis loses every job",
                      f"{where} appendonly yes, and the same in its file")  # fmt: skip
    elif info.get("aof_enabled") == "1":
        sync = options.get("appendfsync", "unknown")
        lost = {"always": "loses nothing", "everysec": "loses up to two seconds", "no": "loses what the kernel held"}
        fact = f"append-only file, appendfsync {sync}: a power cut {lost.get(sync, 'may lose something')}"
        if sync == "no":
            option = "redis.appendfsync" if config.redis.url == EMBEDDED else f"{where} appendfsync"
            yield Finding("redis", "warn", fact, "that may be half a minute of jobs", f"{option} everysec")
        else:
            yield Finding("redis", "ok", fact)


def _memory(config: Config, facts: RedisFacts) -> Iterator[Finding]:
    policy = facts.options.get("maxmemory-policy") or facts.info.get("maxmemory_policy", "unknown")
    limit, used = int(facts.info.get("maxmemory", "0")), int(facts.info.get("used_memory", "0"))
    if policy not in ("noeviction", "unknown"):
        yield Finding("redis", "bad", f"maxmemory-policy {policy}", "it throws jobs away when memory is short",
                      "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in its file")  # fmt: skip
    wanted = config.queue.max_bytes + config.cache.max_bytes * config.cache.enabled
    fact = f"version {facts.info.get('redis_version', '?')}, {policy}, {used // MIB} MiB used"
    if limit and used > limit * 0.9:
        yield Finding(
            "redis", "bad", f"{fact} of {limit // MIB} MiB", "full: nothing new is accepted", "raise maxmemory"
        )
    elif limit and limit < wanted:
        yield Finding(
            "redis", "warn", f"{fact}; maxmemory {limit // MIB} MiB is less than queue.max_bytes + cache.max_bytes",
            "it is full before our own bounds refuse politely",
            f"redis-cli CONFIG SET maxmemory {wanted}, or lower queue.max_bytes",
        )  # fmt: skip
    else:
        yield Finding("redis", "ok", fact)


def _latency(facts: RedisFacts) -> Iterator[Finding]:
    if not facts.pings_s:
        return
    middle, slow = facts.pings_s[len(facts.pings_s) // 2], facts.pings_s[-1]
    helps = "a Redis nearer by; redis-cli --latency"
    fact = f"PING takes {middle * 1000:.2f} ms, {slow * 1000:.2f} ms at most of {len(facts.pings_s)}"
    if middle > SLOW_S:
        yield Finding("redis", "warn", fact, "every job waits four times as long", helps)
    else:
        yield Finding("redis", "ok", fact)


def _hosts(config: Config, facts: RedisFacts, instance: str) -> Iterator[Finding]:
    """Other daemons on this prefix: welcome, if they are meant and serve the same models."""
    others = [host for host in facts.hosts if not (instance and host.owner.startswith(instance))]
    ours = [host for host in facts.hosts if host not in others]
    if not others:
        return
    names = ", ".join(host.owner.partition(":")[0][:8] for host in others)
    yield Finding("hosts", "ok", f"{len(others)} other daemons serve the prefix {config.redis.prefix}: {names}…")
    for host in others:
        for tier, service in host.tiers.items():
            mine = next((each.tiers[tier] for each in ours if tier in each.tiers), None)
            if mine and mine.identity and service.identity and mine.identity != service.identity:
                yield Finding(
                    "hosts", "warn", f"tier {tier} is {mine.model} here and {service.model} on {host.owner[:8]}…, "
                    "of another file or template", "who answers a job is chance, and so is the answer",
                    "the same model files and options on every host, or another redis.prefix",
                )  # fmt: skip
