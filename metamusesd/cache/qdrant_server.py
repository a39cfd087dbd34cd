"""Stage 4 · vectors process · the store on a Qdrant server, which several hosts share.

Every call has a deadline, and whatever the client raises becomes StoreFailed: of REST, of gRPC, of a server that is
away or slow. The key is given to the client and to nobody else: no message contains it. Hosts may create the collection
at the same time, sweep at the same time, and remove what another one has removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import warnings
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metamusesd.cache.base import DIMENSION, Entry, Labels, Neighbour
from metamusesd.cache.payload import FORMAT, INTEGERS, KEYWORDS, cosine, entry_of, payload_of
from metamusesd.errors import CacheError, StoreFailed, StoreRefused

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient, models

    from metamusesd.cache.base import Vector

TIMEOUT_S = 5.0
BATCH = 1000  # entries removed in one call
TINY = 1e-6  # a server's threshold may exclude the score itself
REMEDY = "choose another cache.collection, or delete that one (only cached answers are lost)"


class ServerStore:
    """Implements Store in the collection `name`, by habit `space_name(collection, identity)`.

    `client` makes another client than the one for `url`; tests use qdrant-client's local mode.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        name: str,
        *,
        dimension: int = DIMENSION,
        timeout_s: float = TIMEOUT_S,
        client: Callable[[], AsyncQdrantClient] | None = None,
    ) -> None:
        self._where, self._timeout_s, self._dimension = re.sub("//[^/]*@", "//", url), timeout_s, dimension
        self._name, self._secret = name, api_key
        self._make = client or (lambda: _connect(url, api_key, timeout_s))
        self._client: AsyncQdrantClient | None = None
        self._facts = {"calls": 0, "failed": 0, "entries": 0}

    async def open(self) -> None:
        """As promised by Store. The first time it imports the client: a second."""
        async with self._door():
            client = self._client or self._make()
            try:
                if not await client.collection_exists(self._name):
                    await self._create(client)
                await self._check(client)
            except BaseException:
                if self._client is None:
                    await client.close()
                raise
            self._client = client

    async def close(self) -> None:
        """As promised by Store. The server has everything already."""
        client, self._client = self._client, None
        if client is not None:
            async with self._door():
                await client.close()

    async def put(self, entries: Sequence[tuple[Entry, Vector]]) -> None:
        """As promised by Store."""
        from qdrant_client import models

        async with self._calling() as client:
            if points := [
                models.PointStruct(id=entry.id, vector=vector.tolist(), payload=payload_of(entry))
                for entry, vector in entries
            ]:
                await client.upsert(self._name, points)

    async def search(
        self, vector: Vector, partitions: Sequence[str], floor: float, count: int, now_ms: int
    ) -> list[Neighbour]:
        """As promised by Store."""
        from qdrant_client import models

        if not partitions or count < 1:
            return []
        wanted = models.FieldCondition(key="partition", match=models.MatchAny(any=list(partitions)))
        alive = models.FieldCondition(key="expires_ms", range=models.Range(gt=now_ms))
        async with self._calling() as client:
            found = await client.query_points(
                self._name, query=vector.tolist(), query_filter=models.Filter(must=[wanted, alive]), limit=count,
                score_threshold=floor - TINY, with_payload=True,
            )  # fmt: skip
        near = [
            Neighbour(entry, cosine(each.score))
            for each in found.points
            if (entry := entry_of(str(each.id), each.payload))
        ]
        return [each for each in near if each.score >= floor and each.entry.partition in partitions]

    async def get(self, id: str) -> Entry | None:
        """As promised by Store."""
        async with self._calling() as client:
            found = await client.retrieve(self._name, [id], with_payload=True)
        return entry_of(str(found[0].id), found[0].payload) if found else None

    async def touch(self, ids: Collection[str], used_ms: int) -> None:
        """As promised by Store."""
        await self._set(ids, {"used_ms": used_ms})

    async def mark(self, id: str, *, bar: float, complaints: int) -> None:
        """As promised by Store."""
        await self._set([id], {"bar": bar, "complaints": complaints})

    async def drop(self, ids: Collection[str]) -> None:
        """As promised by Store."""
        async with self._calling() as client:
            if ids:
                await client.delete(self._name, list(ids))

    async def purge(self, labels: Labels) -> int:
        """As promised by Store; of two hosts that purge at the same time each counts what it saw."""
        given = {"tenant": labels.tenant, "muse": labels.muse, "model": labels.model, "tags": labels.tag}
        return await self._remove(_equal({name: value for name, value in given.items() if value is not None}))

    async def sweep(self, now_ms: int, most: int) -> int:
        """As promised by Store."""
        removed = await self._remove(_expired(now_ms))
        while (beyond := await self.count() - most) > 0:
            async with self._calling() as client:
                oldest, _ = await client.scroll(
                    self._name, limit=min(beyond, BATCH), order_by="used_ms", with_payload=False
                )
            await self.drop([str(each.id) for each in oldest])
            removed += len(oldest)
            if not oldest:
                break
        return removed

    async def count(self) -> int:
        """As promised by Store."""
        async with self._calling() as client:
            self._facts["entries"] = (await client.count(self._name, exact=True)).count
        return self._facts["entries"]

    async def tend(self) -> bool:
        """The server looks after itself."""
        return False

    def statistics(self) -> Mapping[str, Any]:
        """Facts for people; `entries` as last counted."""
        return {"kind": "server", "where": self._where, "collection": self._name, **self._facts}

    async def _create(self, client: AsyncQdrantClient) -> None:
        from qdrant_client import models

        size = models.VectorParams(size=self._dimension, distance=models.Distance.COSINE)
        try:
            await client.create_collection(self._name, vectors_config=size)
        except Exception:
            if not await client.collection_exists(self._name):  # else another host was quicker
                raise
        kinds = dict.fromkeys(KEYWORDS, models.PayloadSchemaType.KEYWORD)
        kinds |= dict.fromkeys(INTEGERS, models.PayloadSchemaType.INTEGER)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the local mode of the tests has no indexes, and says so
            for name, kind in kinds.items():
                await client.create_payload_index(self._name, name, field_schema=kind)

    async def _check(self, client: AsyncQdrantClient) -> None:
        """The collection is one of ours. Raises StoreRefused."""
        vectors: Any = (await client.get_collection(self._name)).config.params.vectors
        size, distance = getattr(vectors, "size", None), getattr(vectors, "distance", None)
        if size != self._dimension or distance != "Cosine":
            raise StoreRefused(
                f"collection {self._name} on {self._where} holds {size} numbers by {distance}, and must hold "
                f"{self._dimension} by Cosine; {REMEDY}"
            )
        points, _ = await client.scroll(self._name, limit=1, with_payload=["format"])
        if points and (points[0].payload or {}).get("format") != FORMAT:
            raise StoreRefused(f"collection {self._name} on {self._where} holds points of another format; {REMEDY}")

    async def _set(self, ids: Collection[str], fields: dict[str, Any]) -> None:
        from qdrant_client import models

        async with self._calling() as client:
            if ids:  # by filter: unknown ids are no error then
                chosen = models.Filter(must=[models.HasIdCondition(has_id=list(ids))])
                await client.set_payload(self._name, fields, points=chosen)

    async def _remove(self, chosen: models.Filter) -> int:
        from qdrant_client import models

        async with self._calling() as client:
            number = (await client.count(self._name, count_filter=chosen, exact=True)).count
            if number:
                await client.delete(self._name, models.FilterSelector(filter=chosen))
        return number

    @contextlib.asynccontextmanager
    async def _calling(self) -> AsyncIterator[AsyncQdrantClient]:
        if self._client is None:
            raise StoreFailed("the store is not open")
        async with self._door():
            yield self._client

    @contextlib.asynccontextmanager
    async def _door(self) -> AsyncIterator[None]:
        """A deadline, and our errors instead of theirs: httpx's, grpc's and pydantic's have no common class."""
        self._facts["calls"] += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except CacheError:
            raise
        except TimeoutError as error:
            self._facts["failed"] += 1
            raise StoreFailed(f"the Qdrant server {self._where} did not answer within {self._timeout_s:g} s") from error
        except Exception as error:
            self._facts["failed"] += 1
            said = _said(error).replace(self._secret or "\0", "…")
            raise StoreFailed(f"the Qdrant server {self._where} failed: {said}") from error


def _connect(url: str, api_key: str, timeout_s: float) -> AsyncQdrantClient:
    from qdrant_client import AsyncQdrantClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a key without TLS, in words that are not ours
        return AsyncQdrantClient(
            url=url, api_key=api_key or None, prefer_grpc=True, timeout=max(1, round(timeout_s)),
            check_compatibility=False,
        )  # fmt: skip


def _said(error: Exception) -> str:
    """A gRPC error's text is a page long; its details are a line."""
    details = getattr(error, "details", None)
    return str(details() if callable(details) else error) or type(error).__name__


def _equal(fields: Mapping[str, str]) -> models.Filter:
    from qdrant_client import models

    return models.Filter(
        must=[models.FieldCondition(key=name, match=models.MatchValue(value=value)) for name, value in fields.items()]
    )


def _expired(now_ms: int) -> models.Filter:
    from qdrant_client import models

    return models.Filter(must=[models.FieldCondition(key="expires_ms", range=models.Range(lte=now_ms))])
