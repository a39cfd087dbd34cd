"""Engine benchmark · bench process · run the daemon as a child and ask it through Redis, as any producer would.

Everything that maps our own words to the benchmark's is in this file: the configuration of a layout, the request, the
events. The answer cache and coalescing are off in every request.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.load import Ask, Sample
from benchmarks.machine import descendants, maps, pinned
from metamusesd import config
from metamusesd.job import TERMINAL, CachePolicy, InferenceRequest, Message, Params, Result, decode_result

if TYPE_CHECKING:
    from metamusesd.client import Client

START_TIMEOUT_S = 120.0
LOOK_S = 0.01  # how often it is asked whether it is ready
STOP_TIMEOUT_S = 20.0
NO_CACHE = CachePolicy(read=False, write=False)
CONFIG = """
[daemon]
state_dir = "{state}"
models_dir = "{models}"
drain_s = 1.0

[log]
level = "warning"

[cache]
enabled = false

[models.bench]
file = "{file}"
engine = "{engine}"
context = {context}
kv_cells = {cells}

[tiers.fast]
model = "bench"
workers = {workers}
cores = {cores}
slots = {slots}
gpus = {gpus}
"""


@dataclass(frozen=True)
class Layout:
    """How the cores are spread over workers. `cells` 0: the engine decides."""

    workers: int
    slots: int  # a worker
    context_tokens: int
    cells: int = 0
    engine: str = "llamacpp"

    def name(self, cores: int) -> str:
        """How reports call it."""
        share = cores // self.workers
        return f"{self.workers} x {share}-core worker" + ("s" if self.workers > 1 else "")


class OurServer:
    """A running daemon and a client that is connected to its Redis; see `run_ours`."""

    def __init__(self, client: Client, pid: int, layout: Layout, until_ready: Callable[[], Awaitable[None]]) -> None:
        self.name = f"metamusesd, {layout.engine}"
        self._client = client
        self.pid = pid
        self.until_ready = until_ready

    async def ask(self, ask: Ask, sample: Sample) -> None:
        """Submit, then follow the stream until the job has settled; or wait for the result where none is wanted."""
        request = request_of(ask)
        sample.sent_s = time.perf_counter()
        receipt = await self._client.submit(request)
        try:
            if not ask.style.stream:
                _finish(sample, await self._client.wait(receipt.id))
                return
            async for event in self._client.stream(receipt.id):
                if event.text:
                    sample.arrivals_s.append(time.perf_counter())
                elif event.kind in TERMINAL:
                    _finish(sample, decode_result(event.data))
        except asyncio.CancelledError:
            await self._client.cancel(receipt.id)
            raise

    def worker_pids(self) -> list[int]:
        """The processes that hold the engine: those below the daemon that have libllama mapped."""
        return [pid for pid in descendants(self.pid) if maps(pid, "libllama")]


@asynccontextmanager
async def run_ours(
    model: Path, cores: list[int], layout: Layout, gpus: tuple[str, ...] = ()
) -> AsyncIterator[OurServer]:
    """Start `metamusesd run` on `cores` with its embedded Redis in a temporary directory; drain it afterwards."""
    from metamusesd.client import Client

    with tempfile.TemporaryDirectory(prefix="mm-bench-") as state:
        path = Path(state) / "bench.toml"
        path.write_text(_config(model, cores, layout, state, gpus))
        command = pinned(cores, [sys.executable, "-m", "metamusesd", "run", "--config", str(path)])
        log = Path(state) / "log"
        with log.open("wb") as output:
            child = subprocess.Popen(command, stdout=output, stderr=output)
        until_ready = partial(_until_ready, child, config.load(path, environ={}).health_socket, log)
        try:
            await until_ready()
            async with Client.from_env(path, environ={}) as client:
                yield OurServer(client, child.pid, layout, until_ready)
        finally:
            _stop(child)


def _config(model: Path, cores: list[int], layout: Layout, state: str, gpus: tuple[str, ...]) -> str:
    return CONFIG.format(
        state=state,
        models=model.parent,
        file=model.name,
        engine=layout.engine,
        context=layout.context_tokens,
        cells=layout.cells,
        workers=layout.workers,
        cores=cores,
        slots=layout.slots,
        gpus=list(gpus),
    )


def _finish(sample: Sample, result: Result) -> None:
    if result.state != "done":
        raise RuntimeError(f"a job ended {result.state}: {result.error}")
    sample.done_s = time.perf_counter()
    sample.tokens = result.usage.completion_tokens
    sample.prompt_tokens = result.usage.prompt_tokens
    sample.cached_tokens = result.usage.cached_tokens


def request_of(ask: Ask) -> InferenceRequest:
    """The job that asks this."""
    messages = [Message(role="system", content=ask.system)] if ask.system else []
    messages.append(Message(role="user", content=ask.text))
    params = Params(max_tokens=ask.max_tokens, **ask.style.ours)
    return InferenceRequest(
        messages=messages, params=params, tier="fast", priority=ask.priority, cache=NO_CACHE, stream=ask.style.stream
    )


async def _until_ready(child: subprocess.Popen[bytes], health: Path, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and child.poll() is None:
        with suppress(OSError):
            reader, writer = await asyncio.open_unix_connection(str(health))
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
            status = await reader.readline()
            writer.close()
            if b" 200 " in status:
                return
        await asyncio.sleep(LOOK_S)
    raise RuntimeError(f"the daemon did not become ready: ...{log.read_text(errors='replace')[-3000:]}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(STOP_TIMEOUT_S)
        return
    child.kill()
    child.wait()
