"""Faults benchmark · bench process · a producer that knows nothing but docs/redis-protocol.md: scripts and reads."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import metamusesd
from benchmarks.faults.plan import ENDS, Job
from benchmarks.faults.resp import Redis, ReplyError

LUA = Path(metamusesd.__file__).parent / "queues/lua"
PREFIX = "{metamuse}"
POLL_S = 0.1


class RawProducer:
    """Submits, follows and cancels over plain RESP. Raises OSError when Redis cannot be asked: call again."""

    def __init__(self, socket: Path) -> None:
        self._redis = Redis(socket)
        common = (LUA / "common.lua").read_text("utf-8")
        self._texts = {name: common + (LUA / f"{name}.lua").read_text("utf-8") for name in ("submit", "cancel")}

    async def submit(self, job: Job) -> tuple[str, str, str]:
        """(kind, id, detail) as submit.lua says."""
        body = encode(job) if job.body is None else job.body
        digest = hashlib.sha1(body).hexdigest()
        words = (job.id, body, digest, job.priority, job.tenant, job.deadline_ms, job.key, "", int(job.stream))
        kind, id, detail = (await self._call("submit", *words))[:3]
        return kind.decode(), id.decode(), detail.decode()

    async def cancel(self, id: str) -> str:
        return (await self._call("cancel", id)).decode()

    async def result(self, id: str) -> dict[str, Any] | None:
        """The result once there is one; None when the job is gone."""
        while True:
            raw, state = await self._redis.ask_all(
                [("GET", f"{PREFIX}:result:{id}"), ("HGET", f"{PREFIX}:job:{id}", "state")]
            )
            if raw is not None:
                return dict(json.loads(raw))
            if state is None or state.decode() in ENDS:
                again = await self._redis.ask("GET", f"{PREFIX}:result:{id}")
                return dict(json.loads(again)) if again is not None else None
            await asyncio.sleep(POLL_S)

    def close(self) -> None:
        self._redis.close()

    async def _call(self, name: str, *words: Any) -> Any:
        text = self._texts[name]
        try:
            return await self._redis.ask("EVALSHA", hashlib.sha1(text.encode()).hexdigest(), 1, PREFIX, *words)
        except ReplyError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
        await self._redis.ask("SCRIPT", "LOAD", text)
        return await self._redis.ask("EVALSHA", hashlib.sha1(text.encode()).hexdigest(), 1, PREFIX, *words)


def request(job: Job) -> dict[str, Any]:
    """The job as a producer says it."""
    body: dict[str, Any] = {
        "id": job.id, "user_query": job.query, "priority": job.priority, "tenant": job.tenant, "stream": job.stream,
    }  # fmt: skip
    if job.tier:
        body["tier"] = job.tier
    if job.deadline_ms:
        body["deadline_ms"] = job.deadline_ms
    if job.key:
        body["idempotency_key"] = job.key
    return body


def encode(job: Job) -> bytes:
    return json.dumps(request(job), ensure_ascii=False).encode()
