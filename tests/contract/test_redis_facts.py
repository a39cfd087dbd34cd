"""What `doctor` asks of a real Redis."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import pytest

from metamusesd.commands.redis_facts import ask_redis, of_redis
from metamusesd.commands.symptoms import worst
from metamusesd.config import Config, Redis
from metamusesd.queues.base import Host, Service
from metamusesd.queues.redis_door import RedisDoor
from metamusesd.queues.redis_queue import RedisQueue


def config_of(url: str) -> Config:
    return Config(redis=Redis(url=url, prefix=f"facts-{uuid.uuid4().hex[:8]}"))


@pytest.mark.parametrize("kind", ["redis6", "redis7"])
def test_a_real_server_is_asked_in_its_own_words(kind: str, server_of) -> None:
    """INFO, CONFIG and PINGs of either version give what the findings are made of."""
    config = config_of(server_of(kind).url)
    facts = ask_redis(config)
    assert not facts.trouble and {"redis_version", "aof_enabled", "used_memory"} <= facts.info.keys()
    assert facts.options["maxmemory-policy"] == "noeviction" and len(facts.pings_s) == 50
    assert facts.hosts == () and facts.dead == 0
    assert {finding.topic for finding in of_redis(config, facts, "")} == {"redis"}


def test_who_serves_the_queue_is_seen(server_of) -> None:
    """A host that has announced itself is there, and a stranger to another instance."""
    config = config_of(server_of("redis7").url)

    async def announce() -> None:
        queue = RedisQueue(config.redis_url, config.redis.prefix)
        await queue.open()
        await queue.announce(Host("other:1", {"fast": Service("m")}), 30.0)
        await queue.close()

    asyncio.run(announce())
    facts = ask_redis(config)
    assert [host.owner for host in facts.hosts] == ["other:1"]
    assert "hosts" in {finding.topic for finding in of_redis(config, facts, "me")}
    assert "hosts" not in {finding.topic for finding in of_redis(config, facts, "other")}


def test_a_server_that_refuses_config_is_judged_by_the_rest(server_of) -> None:
    """A managed server: no CONFIG for this user; the policy comes from INFO."""
    url = server_of("redis7").url
    config = config_of(url)

    async def make_user() -> None:
        door = RedisDoor(url, "{x}", 5.0)
        await door.ask("ACL", "SETUSER", "meek", "on", ">pw", "~*", "&*", "+@all", "-config")
        door.close()

    asyncio.run(make_user())
    scheme, _, place = url.partition("://")
    meek = replace(config, redis=replace(config.redis, url=f"{scheme}://meek:pw@{place}"))
    facts = ask_redis(meek)
    assert not facts.trouble and facts.options == {} and facts.info["maxmemory_policy"] == "noeviction"
    assert worst(list(of_redis(meek, facts, ""))) in ("ok", "warn")


def test_a_server_that_is_not_there_is_told_and_not_waited_for() -> None:
    """Trouble in words, and no exception."""
    facts = ask_redis(config_of("redis://127.0.0.1:1"), timeout_s=2.0)
    assert facts.trouble and facts.info == {}
