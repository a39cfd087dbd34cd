"""Example · a program of its own · real prompts through the whole daemon, with one worker killed half way.

    make demo        or        python -m examples.demo

Starts a daemon on its embedded defaults in a directory of its own, submits prompts of mixed classes and muses at once,
streams one of them, kills the busiest worker with SIGKILL, and shows that nothing is lost; then what the caches do
(demo_cache.py); stops the daemon; and shows what prompts ask for, and a busy tier that is helped out, on a second
daemon with two tiers (demo_routing.py). Exit 0: every job is done, every part did its duty, both daemons left with 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples import demo_routing
from examples.demo_cache import show_cache
from examples.prompts import STREAMED, prompts
from metamusesd import config as configuration
from metamusesd.client import Client
from metamusesd.commands import health, screen
from metamusesd.config import Config
from metamusesd.errors import ConfigError, DaemonAway
from metamusesd.job import TERMINAL, InferenceRequest, Result, decode_result

READY_WITHIN_S = 60.0
DONE_WITHIN_S = 100.0
LEAVE_WITHIN_S = 40.0
KILL_AT = 0.35  # of all the tokens that were asked for
POLL_S = 0.1


@dataclass(slots=True)
class Show:
    """What has been seen so far, and a terminal on which a streamed text and short notes take turns."""

    begun_s: float = field(default_factory=time.monotonic)
    restarted: set[str] = field(default_factory=set)
    killed: str = ""
    in_text: bool = False
    waiting: list[str] = field(default_factory=list)

    def note(self, text: str, *, at_once: bool = False) -> None:
        """A line of its own. While a text is streamed it waits for the end of a sentence."""
        self.waiting.append(f"[{time.monotonic() - self.begun_s:5.1f} s] {text}")
        if at_once or not self.in_text:
            self._flush()

    def text(self, text: str) -> None:
        print(text if self.in_text else f"          {text.lstrip()}", end="", flush=True)
        self.in_text = True
        if self.waiting and text.rstrip().endswith((".", "!", "?", ":")):
            self._flush()

    def _flush(self) -> None:
        print("\n" * self.in_text + "\n".join(self.waiting), flush=True)
        self.waiting.clear()
        self.in_text = False


class Milestone:
    """An event that happens after so many tokens."""

    def __init__(self, tokens: float) -> None:
        self._missing, self.reached = tokens, asyncio.Event()

    def count(self, tokens: int) -> None:
        self._missing -= tokens
        if self._missing <= 0:
            self.reached.set()


def main() -> int:
    """The whole demonstration; under two minutes."""
    with tempfile.TemporaryDirectory(prefix="metamusesd-demo-") as directory:
        try:
            config = _config(Path(directory) / "one", {})
            routed = _config(Path(directory) / "two", demo_routing.OVERRIDES)
        except ConfigError as error:
            print(*error.mistakes, sep="\n", file=sys.stderr)
            return 78
        if configuration.missing_models(config):
            print("The demo model is not there yet. Bring it with: make models", file=sys.stderr)
            return 78
        show = Show()
        with _daemon(config, {}, show) as first:
            results, wall_s = asyncio.run(_run_jobs(config, show))
            _report(results, show, wall_s)
            wrong = asyncio.run(_run_cache(config, show))
        demo_routing.show_routes()
        if (os.cpu_count() or 1) < 2:
            return _verdict(results, wrong, show, first.code)
        with _daemon(routed, demo_routing.OVERRIDES, show) as second:
            wrong += asyncio.run(demo_routing.show_upgrade(routed))
        return _verdict(results, wrong, show, first.code or second.code)


def _config(directory: Path, overrides: dict[str, str]) -> Config:
    directory.mkdir()
    return configuration.load(overrides={"daemon.state_dir": str(directory), "redis.url": "embedded", **overrides})


@dataclass(slots=True)
class Ended:
    """How a daemon left."""

    code: int = -1


@contextlib.contextmanager
def _daemon(config: Config, overrides: dict[str, str], show: Show) -> Iterator[Ended]:
    """A running daemon; stopped afterwards. When anything fails its log is shown."""
    log, ended = config.state_dir / "daemon.log", Ended()
    options = {"daemon.state_dir": str(config.state_dir), "redis.url": "embedded", **overrides}
    sets = [text for key, value in options.items() for text in ("--set", f"{key}={value}")]
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "metamusesd", "run", *sets], stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        show.note(f"started metamusesd (pid {daemon.pid}), its Redis and its workers")
        status = _wait_ready(config, daemon)
        names = ", ".join(f"{worker['name']} on core {screen.numbers(worker['cores'])}" for worker in status["workers"])
        show.note(f"ready: {names}")
        yield ended
    except (DaemonAway, TimeoutError, ConnectionError) as error:
        show.note(f"FAILED: {error}")
        print(log.read_text("utf-8", "replace")[-4000:], file=sys.stderr)
        raise SystemExit(1) from error
    finally:
        ended.code = _stop(daemon, show)


def _wait_ready(config: Config, daemon: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Until every worker is ready. Raises DaemonAway or TimeoutError."""
    end_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end_s:
        if daemon.poll() is not None:
            raise DaemonAway(f"the daemon left with exit code {daemon.returncode}")
        try:
            status = health.status(config)
        except DaemonAway:
            status = {}
        everybody = [*status.get("workers", ()), *filter(None, [status.get("vectors")])]
        if status.get("state") == "ready" and all(each["status"] == "ready" for each in everybody):
            return status
        time.sleep(POLL_S)
    raise TimeoutError(f"the daemon was not ready within {READY_WITHIN_S:.0f} s")


async def _run_jobs(config: Config, show: Show) -> tuple[list[tuple[InferenceRequest, Result]], float]:
    """Submit all at once, follow all, kill one worker on the way."""
    requests = prompts()
    half_way = Milestone(KILL_AT * sum(request.params.max_tokens or 0 for request in requests))
    async with Client.from_config(config) as client, asyncio.timeout(DONE_WITHIN_S):
        begun_s = time.monotonic()
        await asyncio.gather(*(client.submit(request) for request in requests))
        show.note(
            f"submitted {len(requests)} jobs in {(time.monotonic() - begun_s) * 1000:.0f} ms; streaming “{STREAMED}”:"
        )
        killer = asyncio.create_task(_kill_one(config, show, half_way))
        results = await asyncio.gather(*(_follow(client, request, show, half_way) for request in requests))
        await killer
        return list(zip(requests, results, strict=True)), time.monotonic() - begun_s


async def _run_cache(config: Config, show: Show) -> list[str]:
    """The second act: what went otherwise than it should."""
    show.note("the caches: one question computed, then asked again")
    async with Client.from_config(config) as client, asyncio.timeout(DONE_WITHIN_S):
        return await show_cache(client)


async def _follow(client: Client, request: InferenceRequest, show: Show, half_way: Milestone) -> Result:
    """All events of one job; the streamed one is printed as it comes."""
    async for event in client.stream(request.id):
        half_way.count(event.tokens)
        if event.kind == "token" and request.id == STREAMED:
            show.text(event.text)
        elif event.kind == "restarted":
            again = request.id in show.restarted
            show.restarted.add(request.id)
            show.note(f"{request.id}: {'given back once more' if again else f'restarted, attempt {event.attempt}'}")
        elif event.kind in TERMINAL:
            result = decode_result(event.data)
            show.note(f"{request.id}: {result.state} on {result.worker or '-'}", at_once=request.id == STREAMED)
            return result
    raise ConnectionError(f"the events of {request.id} ended without a result")


async def _kill_one(config: Config, show: Show, half_way: Milestone) -> None:
    """Half way: SIGKILL for the worker with the most sequences."""
    await half_way.reached.wait()
    status = await asyncio.to_thread(health.status, config)
    victim = max(status["workers"], key=lambda worker: int(worker["slots_used"]))
    if not victim["pid"]:
        raise ConnectionError(f"{victim['name']} has no process")
    show.killed = str(victim["name"])
    show.note(
        f"SIGKILL for {victim['name']} (pid {victim['pid']}), which holds {victim['slots_used']} jobs", at_once=True
    )
    os.kill(int(victim["pid"]), signal.SIGKILL)


def _stop(daemon: subprocess.Popen[bytes], show: Show) -> int:
    """SIGTERM, and wait for the drain."""
    if daemon.poll() is None:
        daemon.terminate()
    try:
        code = daemon.wait(LEAVE_WITHIN_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        code = daemon.wait()
    show.note(f"SIGTERM: drained, the daemon left with exit code {code}")
    return code


def _report(results: list[tuple[InferenceRequest, Result]], show: Show, wall_s: float) -> None:
    if not results:
        return
    headings = (
        "job",
        "class",
        "muse",
        "state",
        "tier",
        "worker",
        ">prompt",
        ">generated",
        ">first token",
        ">tokens/s",
        ">attempts",
    )
    print()
    screen.show(screen.table(headings, [_row(request, result) for request, result in results]))
    done = [result for _, result in results if result.state == "done"]
    generated = sum(result.usage.completion_tokens for result in done)
    prompt = sum(result.usage.prompt_tokens for result in done)
    print(
        f"\n{len(done)} of {len(results)} jobs done in {wall_s:.1f} s: {prompt} prompt and {generated} generated tokens"
    )
    if wall_s:
        print(f"{generated / wall_s:.0f} generated tokens/s over all, with one worker killed and replaced on the way")
    moved = ", ".join(f"{request.id} on {result.worker}" for request, result in results if request.id in show.restarted)
    print(f"killed {show.killed or 'nobody'}; others, or its successor, finished its jobs: {moved or 'it had none'}")


def _row(request: InferenceRequest, result: Result) -> tuple[str, ...]:
    seconds = result.timings.decode_ms / 1000
    rate = f"{result.usage.completion_tokens / seconds:.0f}" if seconds else "-"
    return (
        request.id, request.class_.name.lower(), str(request.muse_id), result.state, result.tier, result.worker,
        str(result.usage.prompt_tokens), str(result.usage.completion_tokens), f"{result.timings.ttft_ms:.0f} ms", rate,
        str(result.attempt),
    )  # fmt: skip


def _verdict(results: list[tuple[InferenceRequest, Result]], wrong: list[str], show: Show, code: int) -> int:
    for line in wrong:
        print(f"\nFAILED: {line}", file=sys.stderr)
    lost = [request.id for request, result in results if result.state != "done"]
    if not results or lost or code or not show.killed or wrong:
        print(f"\nFAILED: not done: {', '.join(lost) or 'nothing'}; daemon's exit code {code}", file=sys.stderr)
        return 1
    print("\nNothing was lost.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
