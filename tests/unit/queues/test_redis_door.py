"""What the door to Redis accepts, without a server."""

from __future__ import annotations

import pytest

from metamusesd.errors import InvalidRequest, QueueRefused, QueueUnavailable
from metamusesd.queues.redis_door import SCRIPTS, _check_server, script_text
from metamusesd.queues.redis_link import translate


def info(**facts: str) -> bytes:
    return "".join(f"{name}:{value}\r\n" for name, value in facts.items()).encode()


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
    _check_server(info(**facts))


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
    """An old server, or one that evicts, is refused with the remedy."""
    with pytest.raises(QueueRefused, match=remedy):
        _check_server(info(**facts))


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("INVALID id|not a name|use letters", InvalidRequest),
        ("OOM command not allowed when used memory > 'maxmemory'.", QueueUnavailable),
        ("LOADING Redis is loading the dataset in memory", QueueUnavailable),
        ("READONLY You can't write against a read only replica.", QueueUnavailable),
        ("NOAUTH Authentication required.", QueueRefused),
        ("NOPERM this user has no permissions", QueueRefused),
        ("", QueueUnavailable),
    ],
)
def test_translation(words: str, kind: type[Exception]) -> None:
    """Every word of the server becomes one of our errors."""
    assert type(translate(Exception(words))) is kind


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_draws_its_format(name: str) -> None:
    """A script's own file begins with its name and draws keys, arguments and reply."""
    text = script_text(name)
    own = text[text.index(f"\n-- {name} · ") :]
    head = own[: own.index("\n\n")]
    assert "-- KEYS  p" in head or "-- KEYS  p" in own[:1500]
    assert "ARGV" in own[:1500] and "reply" in own[:1500]
