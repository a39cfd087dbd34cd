"""Live hosts: what a dispatcher announces is what everybody reads, for as long as it promised to live."""

from __future__ import annotations

import pytest

from metamusesd.errors import InvalidRequest
from metamusesd.queues.base import Host, Service
from tests.contract.bench import OWNER, Bench, until

FAST = Service("a model.gguf", 3, 2.5, 1.125, 2.75)


async def test_what_is_announced_is_read(bench: Bench) -> None:
    """Owner, tiers, model, places, rate and factors come back as they were said, in thousandths."""
    here = Host(OWNER, {"fast": FAST, "heavy": Service("b", 0, 0.0004, 1.0, 2.0)})
    await bench.queue.announce(here, 30.0)
    assert await bench.queue.hosts() == [Host(OWNER, {"fast": FAST, "heavy": Service("b", 0, 0.001, 1.0, 2.0)})]


async def test_a_host_that_serves_nothing(bench: Bench) -> None:
    """A host whose models are still loading lives, too."""
    await bench.queue.announce(Host(OWNER, {}), 30.0)
    assert await bench.queue.hosts() == [Host(OWNER, {})]


async def test_the_last_word_counts(bench: Bench) -> None:
    """A tier that is not announced any more is not served any more."""
    await bench.queue.announce(Host(OWNER, {"fast": FAST, "heavy": FAST}), 30.0)
    await bench.queue.announce(Host(OWNER, {"heavy": FAST}), 30.0)
    assert await bench.queue.hosts() == [Host(OWNER, {"heavy": FAST})]


async def test_a_restarted_host_is_one_host(bench: Bench) -> None:
    """A dispatcher that replaces another of its instance takes its place among the hosts at once."""
    await bench.queue.announce(Host("a:1", {"fast": FAST}), 30.0)
    await bench.queue.announce(Host("b:1", {"fast": FAST}), 30.0)
    await bench.queue.announce(Host("a:2", {"fast": FAST}), 30.0)
    assert {host.owner for host in await bench.queue.hosts()} == {"a:2", "b:1"}


async def test_a_host_that_falls_silent_is_gone(bench: Bench) -> None:
    """Who does not announce itself again vanishes; who promised to live longer stays."""
    await bench.queue.announce(Host("b:1", {"fast": FAST}), 30.0)
    await bench.queue.announce(Host("a:1", {"fast": FAST}), 0.02)

    async def alone() -> bool:
        return await bench.queue.hosts() == [Host("b:1", {"fast": FAST})]

    assert await until(alone)
    if bench.door:
        await bench.queue.announce(Host("b:1", {"fast": FAST}), 30.0)
        assert await bench.door.ask("ZRANGE", f"{bench.door.prefix}:hosts", 0, -1) == [b"b:1"]


@pytest.mark.parametrize(
    "args",
    [
        ("h:1", 1000, "fast", "m", 1, 1, 1),
        ("h:1", 0),
        ("h 1", 1000),
        ("h:1", 1000, "a tier", "m", 1, 1, 1, 1),
        ("h:1", 1000, "fast", "m", 1, "1e3", 1, 1),
        ("h:1", 1000, "fast", "m", 1, -1, 1, 1),
    ],
)
async def test_nonsense_is_refused(bench: Bench, args: tuple[str | int, ...]) -> None:
    """The script takes no half announcement, no names with spaces, no fractions and nothing below zero."""
    if bench.door is None:
        return
    with pytest.raises(InvalidRequest):
        await bench.door.script("announce", *args)
    assert await bench.queue.hosts() == []
