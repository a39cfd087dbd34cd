"""Queue benchmark · our side: the daemon with one echo worker; the producer is our client with its default settings."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import metamusesd
from metamusesd.client import Client
from metamusesd.job import CachePolicy, InferenceRequest, Params

CONFIG = """
[daemon]
state_dir = "{state}"
drain_s = 0.5

[redis]
url = "{url}"

[log]
level = "warning"

[cache]
enabled = false

[models.echo]
engine = "echo"

[tiers.fast]
model = "echo"
workers = 1
slots = 64
"""
NO_CACHE = CachePolicy(read=False, write=False)


def version() -> str:
    return f"metamusesd {metamusesd.__version__}"


def serve(url: str) -> None:
    """Become the daemon; its state lies beside the server's socket."""
    folder = Path(urlsplit(url).path).parent
    path = folder / "bench.toml"
    path.write_text(CONFIG.format(state=folder / "state", url=url))
    os.execv(sys.executable, [sys.executable, "-m", "metamusesd", "run", "--config", str(path)])


class Ours:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def one(self) -> None:
        request = InferenceRequest(user_query="ok", tier="fast", params=Params(max_tokens=1), cache=NO_CACHE)
        assert (await self._client.execute(request)).content == "ok"

    async def many(self, count: int) -> None:
        await asyncio.gather(*(self.one() for _ in range(count)))


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Ours]:
    async with Client(url, "metamuse") as client:
        yield Ours(client)
