"""All stages · dispatcher and clients · the way to the server that holds the queue now: one server, Sentinel, Cluster.

    server     its address
    sentinel   ask the sentinels in turn who is the master; go there; believe it only if it says so itself
    cluster    the node that held the queue the last time, else any other that answers: it names the right one (MOVED)

Every server that is reached is checked anew: it may be another one, or have been restarted with another configuration.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from metamusesd.errors import QueueUnavailable
from metamusesd.queues.redis_address import Address, Place, parse_place
from metamusesd.queues.redis_link import REPLY_ERROR, Argument, Link, connect
from metamusesd.queues.redis_trouble import translate

SENTINEL_S = 1.0  # for one sentinel, or one node of a cluster that is tried, so that a dead one costs little
KNOWN_NODES = 100


class Way:
    """Finds the server anew for every connection. Remembers who answered."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._place: Place = parse_place(url)
        self._doors = list(self._place.doors)  # whoever answered the last time stands first
        self._timeout_s = timeout_s
        self._part_s = min(SENTINEL_S, timeout_s / 4)

    def __repr__(self) -> str:
        return f"<Way {self._place}>"

    def __str__(self) -> str:
        return str(self._place)

    async def connect(self) -> Link:
        """A ready connection to the right server, checked. Raises QueueUnavailable within the time-out."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._first_that_answers()
        except TimeoutError as error:
            raise _silent(self, self._timeout_s) from error

    def moved(self, words: str) -> Address:
        """The node that a `MOVED <slot> <host>:<port>` or ASK names. MOVED: the way leads there from now on."""
        code, _, where = words.split()[:3]
        host, _, port = where.rpartition(":")
        address = replace(self._place.entry, host=host or self._doors[0].host, port=int(port))
        if code == "MOVED":
            self._prefer(address)
        return address

    def avoid(self) -> None:
        """The server reached last does not serve: another one first, if there is any."""
        self._doors.append(self._doors.pop(0))

    async def _first_that_answers(self) -> Link:
        failure: QueueUnavailable | None = None
        for door in list(self._doors):
            try:
                link = await self._through(door)
            except QueueUnavailable as error:
                if failure is None or failure.trouble == "unreachable":  # the first that tells more than that
                    failure = error
            else:
                self._prefer(door)
                return link
        raise failure or QueueUnavailable(f"no server is known: {self}")

    async def _through(self, door: Address) -> Link:
        if self._place.kind == "sentinel":
            return await self._checked(await connect(await self._master_by(door), self._timeout_s))
        most_s = self._timeout_s if len(self._doors) == 1 else self._part_s
        try:
            async with asyncio.timeout(most_s):
                return await self._checked(await connect(door, self._timeout_s))
        except TimeoutError as error:
            raise _silent(door, most_s) from error

    async def _master_by(self, sentinel: Address) -> Address:
        link = await connect(sentinel, self._part_s)
        try:
            answer = await _ask(link, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._place.name)
        finally:
            link.close()
        if not answer:
            raise QueueUnavailable(f"The sentinel at {sentinel} knows no master {self._place.name}")
        return replace(self._place.entry, host=answer[0].decode(), port=int(answer[1]))

    async def _checked(self, link: Link) -> Link:
        """See what INFO says; managed services forbid CONFIG."""
        try:
            facts = facts_of(await _ask(link, "INFO"))
            check_version(facts)
            check_policy(facts)
            if self._place.kind == "sentinel" and facts.get("role") != "master":
                raise QueueUnavailable(f"Redis at {link.server} is no master (yet)", trouble="read_only")
            if facts.get("cluster_enabled") == "1":
                self._learn(await _ask(link, "CLUSTER", "SLOTS"), link.server)
        except BaseException:
            link.close()
            raise
        return link

    def _learn(self, slots: list[Any], told_by: Address) -> None:
        """Remember the cluster's nodes, masters first: any of them can lead on when ours has died."""
        nodes = sorted(((rank, node) for part in slots for rank, node in enumerate(part[2:])), key=lambda pair: pair[0])
        hosts = [((node[0] or b"").decode() or told_by.host, int(node[1])) for _, node in nodes]
        known = [replace(self._place.entry, host=host, port=port) for host, port in hosts]
        self._doors = list(dict.fromkeys((told_by, *known[:KNOWN_NODES], *self._place.doors)))

    def _prefer(self, door: Address) -> None:
        if door in self._doors:
            self._doors.remove(door)
        self._doors.insert(0, door)


def _silent(what: object, waited_s: float) -> QueueUnavailable:
    return QueueUnavailable(f"Redis at {what} cannot be reached: no answer within {waited_s:g} s")


async def _ask(link: Link, *command: Argument) -> Any:
    try:
        reply = await link.call(*command)
    except (OSError, TimeoutError) as error:
        raise translate(error) from error
    if isinstance(reply, REPLY_ERROR):
        raise translate(reply) from reply
    return reply


def facts_of(info: bytes) -> dict[str, str]:
    """What INFO says, by name."""
    return dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)


def check_version(facts: dict[str, str]) -> None:
    """Refuse, as trouble of policy, a version that lacks what the scripts use."""
    version = facts.get("redis_version", "0.0")
    if tuple(int(part) for part in version.split(".")[:2]) < (6, 2) and "valkey_version" not in facts:
        raise QueueUnavailable(f"Redis {version} is too old; use Redis 6.2 or newer, or Valkey", trouble="policy")


def check_policy(facts: dict[str, str]) -> None:
    """Refuse an eviction policy with which jobs would be lost."""
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise QueueUnavailable(
            f"maxmemory-policy is {policy}: jobs would vanish when memory is full; set it to noeviction",
            trouble="policy",
        )
