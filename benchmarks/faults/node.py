"""Faults benchmark · bench process · jobs through the Node producer of examples/node-producer, where it can run."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.faults.family import DIES_WITH_US, Family
from benchmarks.faults.history import Life, Sight, now_ms
from benchmarks.faults.plan import Job

EXAMPLE = Path(__file__).parents[2] / "examples/node-producer"
LINES = Path(__file__).with_name("node_lines.mjs")
KINDS = frozenset({"plain", "cancel", "deadline", "failing"})
ONE_IN = 6  # jobs of those kinds
INSTALL_S = 60.0
CANCEL_MS = {"at once": 0, "started": 30, "token": 100}


class NodeProducer:
    """One process, many jobs at a time. `why_not` says why there is none."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._heard: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())

    async def live(self, life: Life) -> None:
        """One job from submit to its end, into its Life. OSError: the producer is gone."""
        job, heard = life.job, asyncio.Queue[dict[str, Any]]()
        self._heard[job.id] = heard
        self._send(job)
        while True:
            line = await heard.get()
            life.note(f"node: {json.dumps(line, ensure_ascii=False)[:200]}")
            match line["say"]:
                case "accepted":
                    life.accepted_ms = life.accepted_ms or now_ms()
                case "cancel":
                    life.cancels.append(line["answer"])
                case "lost":
                    life.lost += 1
                case "ended":
                    life.sights.append(Sight("node", line["state"], line["content"], line["code"], now_ms()))
                    if line["state"] == "done" and line["text"] != line["content"]:
                        life.wrongs.append(f"the node reader's text is {line['text'][:80]!r}")
                    return
                case "error" if line["name"] == "Unavailable":
                    life.unsure += 1
                    self._send(job)
                case _:
                    life.wrongs.append(f"the node producer saw {line}")
                    return

    async def close(self) -> None:
        """Its input ends, and so does it; killed when it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await asyncio.gather(self._reader, return_exceptions=True)

    def _send(self, job: Job) -> None:
        request: dict[str, Any] = {"id": job.id, "user_query": job.query}
        if job.tier:
            request["tier"] = job.tier
        options = {
            "priority": job.priority, "tenant": job.tenant, "stream": job.stream, "deadlineMs": job.deadline_ms,
        }  # fmt: skip
        cancel_ms = CANCEL_MS.get(job.cancel, job.pause_s * 1000) if job.cancel else None
        line = {"id": job.id, "request": request, "options": options, "cancelMs": cancel_ms}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for raw in self._process.stdout:
            line = json.loads(raw)
            if (heard := self._heard.get(line["id"])) is not None:
                heard.put_nowait(line)
        for id, heard in self._heard.items():
            heard.put_nowait({"id": id, "say": "error", "name": "gone", "message": "the node process ended"})


def takes(job: Job) -> bool:
    """Whether this job goes through Node, where there is one."""
    return job.kind in KINDS and job.number % ONE_IN == 0


async def start(family: Family) -> tuple[NodeProducer | None, str]:
    """(the producer, or None; why there is none). A copy of the example with its modules, as `npm ci` brings them."""
    if not (EXAMPLE.is_dir() and shutil.which("node") and shutil.which("npm")):
        return None, "no Node producer: node or npm is not on PATH"
    copy = family.folder / "node"
    shutil.copytree(EXAMPLE, copy)
    if not (copy / "node_modules/redis").is_dir():
        install = await asyncio.create_subprocess_exec(
            "npm", "ci", "--prefer-offline", "--no-audit", "--no-fund", cwd=copy,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        with suppress(TimeoutError):
            async with asyncio.timeout(INSTALL_S):
                await install.wait()
        if install.returncode is None:
            install.kill()
        if install.returncode:
            return None, "no Node producer: npm ci brings no modules here"
    lua = f"{EXAMPLE.parents[1] / 'metamusesd/queues/lua'}/"
    process = await asyncio.create_subprocess_exec(
        *DIES_WITH_US, "env", f"LUA={lua}", "node", str(LINES), str(copy / "client.mjs"), str(family.redis_socket),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**22,
    )  # fmt: skip
    return NodeProducer(process), ""
