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
SPOILT_TTL_MS = 600_000


class RawProducer:
    """Submits, follows and cancels over plain RESP. Raises OSError when Redis cannot be asked: call again."""

    def __init__(self, socket: Path) -> None:
        self._redis = Redis(socket)
        common = (LUA / "common.lua").read_text("utf-8")
        self._texts = {name: common + (LUA / f"{name}.lua").read_text("utf-8") for name in ("submit", "cancel")}

    async def submit(self, job: Job) -> tuple[str, str, str]:
        """(kind, id, detail) as submit.lua says."""
        kind, id, detail = (await self._call("submit", *_words(job)))[:3]
        return kind.decode(), id.decode(), detail.decode()

    async def submit_spoilt(self, job: Job) -> None:
        """Submit and break its keys before anybody else can look; what is put there has a TTL."""
        text, key = self._texts["submit"], f"{PREFIX}:job:{job.id}"
        spoils: dict[str, list[tuple[Any, ...]]] = {
            "no body": [("HDEL", key, "body")],
            "no fields": [("HDEL", key, "prio", "score", "tenant", "bytes", "attempt", "submitted")],
            "text fields": [
                ("HSET", key, "prio", "x", "attempt", "y", "score", "z", "bytes", "many", "deadline", "soon")
            ],
            "no hash": [("DEL", key)],
            "no job but a text": [("SET", key, "a text", "PX", SPOILT_TTL_MS)],
            "a ghost in the queue": [("DEL", key), ("ZADD", f"{PREFIX}:ready:fast", 1, f"{job.id}.ghost")],
        }
        await self._redis.ask_all([("MULTI",), ("EVAL", text, 1, PREFIX, *_words(job)), *spoils[job.spoil], ("EXEC",)])

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


def _words(job: Job) -> tuple[Any, ...]:
    body = encode(job) if job.body is None else job.body
    digest = hashlib.sha1(body).hexdigest()
    return job.id, body, digest, job.priority, job.tenant, job.deadline_ms, job.key, "", int(job.stream)


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
