"""Engine benchmark · bench process · run llama-server as a child and ask it over HTTP, one fresh connection a request.

The server's settings are its defaults but for what makes the comparison equal: the same model file, cores, greedy
chain and context a slot, and as many slots as there are concurrent requests. Its prompt cache stays on, as it is by
default. SSE lines are read straight from the socket: an HTTP library would cost more than the parsing itself.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from benchmarks.llama_server import Build
from benchmarks.load import Ask, Sample
from benchmarks.machine import pinned

START_TIMEOUT_S = 60.0
LOOK_S = 0.01  # how often it is asked whether it is healthy
STAND_IN = """
import signal, sys, xllamacpp
model, port, slots, context, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = model, ["127.0.0.1"], port
params.n_parallel, params.n_ctx, params.n_gpu_layers = slots, context, 0
if threads:
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
signal.pause()
"""


class LlamaServer:
    """A running llama-server; see `run_llama_server`."""

    def __init__(self, name: str, port: int, pid: int) -> None:
        self.name = name
        self.pid = pid
        self._port = port

    async def ask(self, ask: Ask, sample: Sample) -> None:
        """Stream one chat completion."""
        body = msgspec.json.encode(body_of(ask))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: l\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        sample.sent_s = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        try:
            writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            status = await reader.readline()
            if b" 200 " not in status:
                raise RuntimeError(f"{self.name} answered {status!r}: {(await reader.read(2000))!r}")
            while line := await reader.readline():
                if line.startswith((b"data: {", b"{")):  # an event of a stream; the whole answer
                    _take(_CHUNK.decode(line.removeprefix(b"data: ")), sample)
            sample.done_s = time.perf_counter()
        finally:
            writer.close()


@asynccontextmanager
async def run_llama_server(
    build: Build,
    model: Path,
    cores: list[int],
    *,
    slots: int,
    context_tokens: int,
    threads: int | None,
    environment: dict[str, str] | None = None,
    label: str = "",
    gpus: tuple[str, ...] = (),
) -> AsyncIterator[LlamaServer]:
    """Start a server on `cores`, wait until it is healthy, end it afterwards. `threads` None: the server's default."""
    port = _free_port()
    command = pinned(cores, _command(build, model, port, slots, context_tokens, threads, bool(gpus)))
    seen = {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **seen, **(environment or {})})
        try:
            await _until_healthy(child, port, log)
            yield LlamaServer(f"{build.name}{label}", port, child.pid)
        finally:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(5)
            child.kill()
            child.wait()


def _command(
    build: Build, model: Path, port: int, slots: int, context_tokens: int, threads: int | None, gpu: bool
) -> list[str]:
    if not build.binary:
        numbers = (port, slots, slots * context_tokens, threads or 0)
        return [sys.executable, "-c", STAND_IN, str(model), *map(str, numbers)]
    command = [build.binary, "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-ngl", "999" if gpu else "0"]
    command += ["--parallel", str(slots), "-c", str(slots * context_tokens)]
    return command if threads is None else [*command, "-t", str(threads), "-tb", str(threads)]


def body_of(ask: Ask) -> dict[str, Any]:
    """The request that asks this."""
    messages = [{"role": "system", "content": ask.system}] if ask.system else []
    messages.append({"role": "user", "content": ask.text})
    return {"messages": messages, "max_tokens": ask.max_tokens, "stream": ask.style.stream, **ask.style.theirs}


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Counts(msgspec.Struct):
    predicted_n: int = 0
    prompt_n: int = 0
    cache_n: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    timings: _Counts | None = None
    error: Any = None


_CHUNK = msgspec.json.Decoder(_Chunk)


def _take(chunk: _Chunk, sample: Sample) -> None:
    if chunk.error is not None:
        raise RuntimeError(f"llama-server: {chunk.error}")
    if chunk.choices and chunk.choices[0].delta.content:
        sample.arrivals_s.append(time.perf_counter())
    if chunk.timings is not None:
        sample.tokens = chunk.timings.predicted_n
        sample.cached_tokens = chunk.timings.cache_n
        sample.prompt_tokens = chunk.timings.prompt_n + chunk.timings.cache_n


async def _until_healthy(child: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and child.poll() is None:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n")
            status = await reader.readline()
            writer.close()
            if b" 200 " in status:
                return
        await asyncio.sleep(LOOK_S)
    log.seek(0)
    raise RuntimeError(f"llama-server did not start: ...{log.read()[-2000:].decode(errors='replace')}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
