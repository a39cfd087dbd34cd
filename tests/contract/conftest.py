"""Fixtures of the contract suites."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.contract.bench import Bench, open_bench
from tests.contract.redis_servers import RedisServer, binary_of, end_all, free_ports


@pytest.fixture(scope="session")
def redis_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RedisServer]]:
    """The servers that were started so far, by kind; see `server_of`."""
    running: dict[str, RedisServer] = {}
    yield running
    for server in running.values():
        server.stop()


@pytest.fixture
def server_of(redis_servers: dict[str, RedisServer], tmp_path_factory: pytest.TempPathFactory):
    """A function: the running server of a kind, started once a session."""

    def get(kind: str) -> RedisServer:
        if kind not in redis_servers:
            folder: Path = tmp_path_factory.mktemp(kind)
            redis_servers[kind] = RedisServer(binary_of(kind), folder).start()
        return redis_servers[kind]

    return get


@pytest.fixture(params=["redis6", "redis7", "memory"])
async def bench(request: pytest.FixtureRequest, server_of) -> AsyncIterator[Bench]:
    """A queue of every kind in turn."""
    async for each in open_bench(request.param, lambda kind: server_of(kind).url):
        yield each


@pytest.fixture(params=["redis6", "redis7"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A durable server of a test's own, on a UNIX socket and a TCP port: to be stopped, filled, spoilt."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    server = RedisServer(binary_of(request.param), tmp_path, options, port=free_ports(1)[0]).start()
    yield server
    end_all([server])
