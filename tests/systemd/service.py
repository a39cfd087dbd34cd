"""The installed service as its operator handles it: systemctl, journalctl, the configuration file, jobs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from metamusesd.client import SyncClient
from metamusesd.job import InferenceRequest, Params, Result
from tests.systemd import page
from tests.systemd.box import Box, until

UNIT = "metamusesd"
CONFIG = "/etc/metamusesd/metamusesd.toml"
STATE = "/var/lib/metamusesd"
START = f"systemctl enable --now {UNIT}"
READY_S = 60.0
JOBS_S = 120.0
# What the tests change in the installed file: two workers of one core, and a drain that long jobs outlast.
WORKERS, DRAIN_S = 2, 3.0


@dataclass(slots=True)
class Service:
    """One installation in one box."""

    box: Box
    first_words: str = ""  # of make install
    _numbers: Iterable[int] = field(default_factory=itertools.count)

    def install(self) -> None:
        """As docs/operations.md says, up to the start."""
        *install, start = page.commands()["Install"].splitlines()
        assert start == START
        self.first_words = self.follow("\n".join(install))
        self.configure()

    def follow(self, commands: str) -> str:
        """Type them, in the checkout, and stop at the first that fails. What they print."""
        return self.box.run("sh", "-e", "-c", commands).stdout

    # the configuration

    def configure(self, workers: int = WORKERS, model: str = "smollm2", more: str = "") -> None:
        """Edit the installed file: `model` serves, `more` goes to the end."""
        sample = self.box.path("/opt/metamusesd/share/doc/metamusesd/etc/metamusesd.toml").read_text("utf-8")
        given = {
            "state_dir": f'"{STATE}"',
            "models_dir": f'"{STATE}/models"',
            "runtime_dir": '"/run/metamusesd"',
            "drain_s": DRAIN_S,
            "workers": workers,
        }
        for key, value in given.items():
            sample, count = re.subn(rf"(?m)^#: {key} = .*$", f"{key} = {value}", sample, count=1)
            assert count == 1, key
        sample = sample.replace('model = "smollm2"', f'model = "{model}"')
        self.box.path(CONFIG).write_text(f"{sample}\n{more}\n", "utf-8")

    def drop_in(self, text: str) -> None:
        """`systemctl edit`; an empty text takes it away again."""
        path = self.box.path(f"/etc/systemd/system/{UNIT}.service.d/test.conf")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"[Service]\n{text}\n", "utf-8")
        self.box.run("systemctl", "daemon-reload")

    # the service

    def systemctl(self, verb: str, check: bool = True) -> str:
        """Its output and errors."""
        done = self.box.run("systemctl", verb, UNIT, check=check)
        return done.stdout + done.stderr

    def show(self, name: str) -> str:
        """One property."""
        return self.box.says("systemctl", "show", "--property", name, "--value", UNIT)

    def main_pid(self) -> str:
        """Inside the box; "0" when there is none."""
        return self.show("MainPID")

    def wait_ready(self) -> None:
        """Until /readyz says so."""
        until(self._is_ready, READY_S, f"ready\n{self.journal()}")

    def _is_ready(self) -> bool:
        try:
            return self.box.ask_health("/readyz")[0] == 200
        except OSError:
            return False

    def status(self) -> dict[str, Any]:
        """What /status says."""
        found: dict[str, Any] = self.box.ask_health("/status")[1]
        return found

    def pids(self) -> dict[str, int]:
        """Every child that is there, by name."""
        status = self.status()
        children = [status["redis"], status["dispatcher"], status["vectors"], *status["workers"]]
        return {child["name"]: child["pid"] for child in children if child.get("pid")}

    def processes(self) -> list[str]:
        """Every process of the service's user, and whatever else is ours, as `ps` shows it."""
        lines = self.box.says("ps", "-eo", "user,pid,args", "--no-headers").splitlines()
        return [line for line in lines if line.startswith(UNIT) or "metamusesd" in line]

    def journal(self, *matches: str) -> str:
        """Its lines, or those that match."""
        return self.box.says("journalctl", "--no-pager", "--output=cat", *(matches or ("--unit", UNIT)))

    # jobs

    def client(self) -> SyncClient:
        """A producer; it lives outside, and reaches the socket through the box's root."""
        return SyncClient(f"unix://{self.box.path('/run/metamusesd/redis.sock')}", "metamuse")

    def request(self, tokens: int) -> InferenceRequest:
        """A question that nobody asked before, and an answer of just so many tokens."""
        number = next(iter(self._numbers))
        return InferenceRequest(
            id=f"systemd-{number}",
            user_query=f"Tell me a story about the number {number}.",
            params=Params(max_tokens=tokens, ignore_eos=True),
        )

    def submit(self, count: int, tokens: int) -> list[str]:
        """Jobs that are accepted; their ids."""
        with self.client() as client:
            return [client.submit(self.request(tokens)).id for _ in range(count)]

    def wait_running(self, count: int) -> None:
        """Until so many jobs are generated at once."""
        until(lambda: self.status()["dispatcher"]["running"] >= count, JOBS_S, f"{count} jobs run")

    def results(self, ids: Iterable[str]) -> list[Result]:
        """Of all of them, when they have ended."""
        with self.client() as client:
            return [client.wait(id, JOBS_S) for id in ids]

    def attempts(self, ids: Iterable[str]) -> list[tuple[str, int]]:
        """(state, crashes) of each."""
        with self.client() as client:
            return [(view.state, view.crashes) for view in (client.status(id) for id in ids)]
