"""Stage 4 · vectors process · looks after the stores of the semantic cache: who was used, who must go, what is due.

Uses are noted in one call a turn, not one a hit. The store's own maintenance waits for a quiet moment: it may be slow,
and it may hold the interpreter; only when it has waited OVERDUE_NS it is done in any case.
"""

from __future__ import annotations

from collections.abc import Callable

from metamusesd.cache.base import Store
from metamusesd.errors import CacheError

SWEEP_NS = 30_000_000_000
QUIET_NS = 1_000_000_000
OVERDUE_NS = 30_000_000_000
MOST_PROMISES = 10_000


class Upkeep:
    """Call everything on the event loop. `stores`: each with the most entries that it may have; the first one is the
    answers'. `tending` is told before and after maintenance."""

    def __init__(self, stores: list[tuple[Store, int]]) -> None:
        self.tending: Callable[[bool], None] = lambda _begins: None
        self.swept = self.tended = 0
        self._stores = stores
        self._used: dict[str, None] = {}
        self._swept_ns = self._tended_ns = 0

    def used(self, id: str) -> None:
        """An answer was given again."""
        self._used[id] = None

    async def turn(self, now_ns: int, now_ms: int, quiet_ns: int) -> bool:
        """What is due now; `quiet_ns`: for so long nobody has asked. True: there is more to do. Raises StoreFailed."""
        more = False
        if quiet_ns >= QUIET_NS or now_ns - self._tended_ns >= OVERDUE_NS:
            self._tended_ns = now_ns
            more = await self._tend()  # first: it may heal the store
        await self.note(now_ms)
        if now_ns - self._swept_ns >= SWEEP_NS:
            self._swept_ns = now_ns
            for store, most in self._stores:
                self.swept += await store.sweep(now_ms, most)
        return more

    async def note(self, now_ms: int) -> None:
        """Tell the store who was used. Raises StoreFailed."""
        if self._used:
            used, self._used = self._used, {}
            await self._stores[0][0].touch(list(used), now_ms)

    async def close(self, now_ms: int) -> None:
        """Note the last uses and close the stores, each whatever became of the one before. Raises StoreFailed."""
        failure: CacheError | None = None
        for work in (lambda: self.note(now_ms), *(store.close for store, _ in self._stores)):
            try:
                await work()
            except CacheError as error:
                failure = error
        if failure is not None:
            raise failure

    async def _tend(self) -> bool:
        self.tending(True)
        try:
            done = [await store.tend() for store, _ in self._stores]
        finally:
            self.tending(False)
        self.tended += sum(done)
        return any(done)
