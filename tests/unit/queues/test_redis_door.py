"""What the door to Redis accepts, without a server."""

from __future__ import annotations

import pytest

from metamusesd.board import RedisTrouble
from metamusesd.config.load import load
from metamusesd.errors import ConfigError, InvalidRequest, QueueFault, QueueUnavailable
from metamusesd.queues.redis_address import Address, parse_place
from metamusesd.queues.redis_door import SCRIPTS, script_text
from metamusesd.queues.redis_trouble import TROUBLES, translate
from metamusesd.queues.redis_way import check_policy, check_version


@pytest.mark.parametrize(
    "facts",
    [
        {"redis_version": "6.2.14", "maxmemory_policy": "noeviction"},
        {"redis_version": "7.0.15"},
        {"redis_version": "255.255.255", "maxmemory_policy": "noeviction"},
        {"redis_version": "7.2.4", "valkey_version": "8.0.1", "maxmemory_policy": "noeviction"},
    ],
)
def test_servers_that_do(facts: dict[str, str]) -> None:
    """Redis from 6.2 on and Valkey are accepted; a server that hides its policy is believed."""
    check_version(facts)
    check_policy(facts)


@pytest.mark.parametrize(
    ("facts", "remedy"),
    [
        ({"redis_version": "6.0.16"}, "6.2"),
        ({"redis_version": "5.0.14"}, "6.2"),
        ({}, "6.2"),
        ({"redis_version": "7.0.15", "maxmemory_policy": "volatile-lru"}, "noeviction"),
    ],
)
def test_servers_that_do_not(facts: dict[str, str], remedy: str) -> None:
    """An old server, or one that evicts, is trouble of policy, with the remedy."""
    with pytest.raises(QueueUnavailable, match=remedy) as caught:
        check_version(facts)
        check_policy(facts)
    assert caught.value.trouble == "policy"


WRAP = "ERR Error running script (call to f_93f9a13ea0a55de8b28de819dacf3bf92b438406): @user_script:2: "
TAIL = " script: 93f9a13ea0a55de8b28de819dacf3bf92b438406, on @user_script:2."


@pytest.mark.parametrize(
    ("words", "trouble"),
    [
        ("", "unreachable"),
        ("LOADING Redis is loading the dataset in memory", "loading"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "memory"),
        (WRAP + "@user_script: 2: -OOM command not allowed when used memory > 'maxmemory'.", "memory"),
        ("OOM command not allowed when used memory > 'maxmemory'." + TAIL, "memory"),
        ("READONLY You can't write against a read only replica.", "read_only"),
        (WRAP + "@user_script: 2: -READONLY You can't write against a read only replica.", "read_only"),
        ("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)", "read_only"),
        (WRAP + "@user_script: 2: -MISCONF Redis is configured to save RDB snapshots, but", "disk"),
        ("MISCONF Redis is configured to save RDB snapshots, but" + TAIL, "disk"),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", "busy"),
        (WRAP + "@user_script: 2: -NOREPLICAS Not enough good replicas to write.", "busy"),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "busy"),
        ("ERR Script attempted to access a non local key in a cluster node" + TAIL, "busy"),
        ("ERR max number of clients reached", "busy"),
        ("ERR something that a later version says", "busy"),
        ("NOAUTH Authentication required.", "denied"),
        ("NOPERM this user has no permissions", "denied"),
        (WRAP + "@user_script: 2: The user executing the script can't run this command or subcommand", "denied"),
        ("ERR The user executing the script can't access at least one of the keys mentioned" + TAIL, "denied"),
        ("ERR DB index is out of range", "denied"),
    ],
)
def test_trouble(words: str, trouble: str) -> None:
    """Every word of the server that may pass becomes QueueUnavailable with its trouble, as 6.2 and 7.0 wrap it."""
    error = translate(Exception(words))
    assert type(error) is QueueUnavailable and error.trouble == trouble


@pytest.mark.parametrize(
    "words",
    [
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        WRAP + "WRONGTYPE Operation against a key holding the wrong kind of value",
        "WRONGTYPE Operation against a key holding the wrong kind of value" + TAIL,
        WRAP + "user_script:2: attempt to index local 'x' (a nil value)",
        "ERR user_script:2: attempt to index local 'x' (a nil value)" + TAIL,
        WRAP + "ERR value is not an integer or out of range",
        "ERR value is not an integer or out of range" + TAIL,
        "ERR Invalid stream ID specified as stream command argument",
        "CROSSSLOT Keys in request don't hash to the same slot",
    ],
)
def test_faults(words: str) -> None:
    """What no repetition mends is QueueFault."""
    assert type(translate(Exception(words))) is QueueFault


def test_invalid() -> None:
    """A script's own refusal names field, problem and remedy."""
    error = translate(Exception("INVALID id|not a name|use letters"))
    assert type(error) is InvalidRequest and (error.field, error.remedy) == ("id", "use letters")


def test_the_board_knows_every_trouble() -> None:
    """Each trouble is a name that the board can show."""
    assert {*TROUBLES.values(), "unreachable", "policy"} <= {trouble.name.lower() for trouble in RedisTrouble}


def test_sentinels() -> None:
    """A sentinel URL names the sentinels, the master, its database and both passwords, and shows none of them."""
    place = parse_place("sentinel://u:p%40@h1:1,h2,[::1]:3/my%20queue/2?sentinel_password=s3")
    assert place.kind == "sentinel" and place.name == "my queue"
    assert [(door.host, door.port, door.password) for door in place.doors] == [
        ("h1", 1, "s3"), ("h2", 26379, "s3"), ("::1", 3, "s3"),
    ]  # fmt: skip
    assert (place.entry.db, place.entry.username, place.entry.password) == (2, "u", "p@")
    assert str(place) == "sentinel h1:1,h2:26379,::1:3/my queue" and "p@" not in repr(place) and "s3" not in repr(place)


def test_a_cluster() -> None:
    """A cluster URL names some nodes; all are entered in the same way."""
    place = parse_place("cluster://:pw@h1:1,h2?tls=1&ssl_cert_reqs=none")
    assert place.kind == "cluster" and [str(door) for door in place.doors] == ["h1:1", "h2:6379"]
    assert all(door.password == "pw" and door.tls is not None for door in place.doors)
    assert Address(host="h1", port=1, password="pw", tls=place.entry.tls) == place.doors[0]


@pytest.mark.parametrize("url", ["sentinel://h1:1,h2/muse", "cluster://h1,h2:2", "unix:///r.sock", "rediss://h/1"])
def test_the_configuration_takes_what_the_door_takes(url: str) -> None:
    """Each form of redis.url passes the check of the configuration; a sentinel URL without a name does not."""
    assert load(environ={}, overrides={"redis.url": url}).redis_url == url
    with pytest.raises(ConfigError, match=r"redis\.url"):
        load(environ={}, overrides={"redis.url": "sentinel://h1:1"})


@pytest.mark.parametrize("url", ["sentinel://h", "sentinel:///name", "sentinel://h/n/x", "cluster://", "cluster://h:x"])
def test_bad_places(url: str) -> None:
    """A URL that leads nowhere is a configuration error with a remedy."""
    with pytest.raises(ConfigError, match=r"redis\.url"):
        parse_place(url)


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_draws_its_format(name: str) -> None:
    """A script's own file begins with its name and draws keys, arguments and reply."""
    text = script_text(name)
    own = text[text.index(f"\n-- {name} · ") :]
    head = own[: own.index("\n\n")]
    assert "-- KEYS  p" in head or "-- KEYS  p" in own[:1500]
    assert "ARGV" in own[:1500] and "reply" in own[:1500]
