"""A vectors process with a toy embedder and stores in memory, which misbehave when a file says so. The rest is real."""

from __future__ import annotations

import asyncio
import os
import threading
import time

from metamusesd.cache.memory import MemoryStore
from metamusesd.cache.semantic import Semantic
from metamusesd.control import Birth
from metamusesd.errors import EmbedderFailed, StoreFailed, StoreRefused
from metamusesd.log import get_logger
from metamusesd.vectors.boot import Boot, fail
from tests.process.kid_dispatcher import mischief, note
from tests.unit.cache.test_semantic import ToyEmbedder


class Moody(MemoryStore):
    """Does what the file says."""

    def __init__(self, birth: Birth) -> None:
        super().__init__()
        self.birth = birth

    async def open(self) -> None:
        self._mind()
        if mischief(self.birth) == "refused":
            raise StoreRefused("the collection has vectors of 8 numbers, not 384")

    async def count(self) -> int:
        self._mind()
        return await super().count()

    async def search(self, *given, **more):
        self._mind()
        return await super().search(*given, **more)

    async def tend(self) -> bool:
        if mischief(self.birth) == "tends for long":
            note(self.birth, "tends")
            os.unlink(self.birth.config.state_dir / "mischief-vectors")
            end_s = time.monotonic() + 3.0
            while time.monotonic() < end_s:  # holds the interpreter, as optimize() does
                pass
            note(self.birth, "tended")
        return False

    def _mind(self) -> None:
        if mischief(self.birth) == "away":
            raise StoreFailed("the server is away")


class Sleepy(ToyEmbedder):
    """Stands still on its thread when the file says so."""

    def __init__(self, birth: Birth) -> None:
        super().__init__()
        self.birth = birth

    def embed(self, texts):
        if mischief(self.birth) == "embeds for ever":
            note(self.birth, "stuck")
            threading.Event().wait(600)
        return super().embed(texts)


def main(birth: Birth) -> int:
    log = get_logger(birth.name, pid=os.getpid())
    note(birth, "born", generation=birth.generation)
    wanted = mischief(birth)
    if wanted.startswith("exit"):
        return int(wanted.split()[1])
    if wanted == "no embedder":
        return fail(birth, log, EmbedderFailed("the weights are broken"))
    semantic = Semantic(Sleepy(birth), Moody(birth), MemoryStore())
    return asyncio.run(Boot(birth, semantic, log).run())
