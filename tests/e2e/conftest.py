"""A whole daemon with a real model and its embedded Redis, started the way people start it."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metamusesd import config as configuration
from metamusesd.commands import health
from metamusesd.config import DEMO_MODEL, Config
from metamusesd.errors import DaemonAway

ROOT = Path(__file__).parents[2]
READY_WITHIN_S = 50.0


@dataclass(slots=True)
class Daemon:
    """A running daemon and the command line that finds it."""

    process: subprocess.Popen[bytes]
    config: Config
    flags: list[str]
    environ: dict[str, str]

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "metamusesd", *args, *self.flags]

    def run(self, *args: str, given: bytes = b"") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*args), input=given, capture_output=True, env=self.environ, timeout=55, check=False
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, args: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environ)

    def status(self) -> dict[str, Any]:
        return health.status(self.config)


def models_dir() -> Path | None:
    given = os.environ.get("MODELS_DIR")
    found = [
        path for path in (Path(given) if given else None, ROOT / "models") if path and (path / DEMO_MODEL).is_file()
    ]
    return found[0] if found else None


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """One worker on one core; SIGTERM at the end must make it leave with 0."""
    models = models_dir()
    if models is None:
        pytest.skip(f"{DEMO_MODEL} is not there: run `make models`, or name its directory in MODELS_DIR")
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    with tempfile.TemporaryDirectory(prefix="mmd-e2e-") as directory:
        settings = {
            "daemon.state_dir": directory,
            "daemon.models_dir": str(models),
            "tiers.fast.workers": "1",
            "redis.url": "embedded",
        }
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("METAMUSESD_", "REDIS_"))}
        flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        config = configuration.load(environ=environ, overrides=settings)
        with (Path(directory) / "log").open("w+b") as log:
            command = [sys.executable, "-m", "metamusesd", "run", *flags]
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, env=environ) as process:
                running = Daemon(process, config, flags, environ)
                try:
                    wait_ready(running, Path(log.name))
                    yield running
                finally:
                    process.terminate()
                    code = process.wait(50)
        assert code == 0, (Path(directory) / "log").read_text()[-4000:]


def wait_ready(daemon: Daemon, log: Path) -> None:
    end_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end_s:
        assert daemon.process.poll() is None, log.read_text()[-4000:]
        try:
            if daemon.status()["state"] == "ready":
                return
        except DaemonAway:
            pass
        time.sleep(0.05)
    pytest.fail(f"not ready within {READY_WITHIN_S} s: {log.read_text()[-4000:]}")
