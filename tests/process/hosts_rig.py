"""Several hosts on one machine: a network namespace each, a switch between them, one Redis in its own."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from metamusesd.client import Client
from tests.process.daemon_rig import Daemon
from tests.process.dispatcher_rig import redis_program, until

SUBNET = "10.201.7"
REDIS_ADDRESS = f"{SUBNET}.1"
_NUMBERS = itertools.count(1)

CONFIG = """
[daemon]
state_dir = "{folder}/s"
hang_s = 2.0
backoff_s = 0.01
restart_limit = 20
[redis]
url = "redis://{redis}:6379/0"
[cache]
enabled = false
[queue]
lease_s = 3.0
strand_s = {strand_s}
[models.echo]
engine = "echo"
context = 100000
"""

TIER = """
[tiers.{name}]
model = "echo"
workers = 1
cores = 1
slots = 8
"""


def ip(*words: str) -> None:
    """One command of iproute2. Raises CalledProcessError when it refuses."""
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


def can_make_namespaces() -> bool:
    """Whether this user may; the tests are skipped where not."""
    name = f"mm-try-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "delete", name)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


class Network:
    """Namespaces on one bridge, which stands in a namespace as well: nothing of it is seen outside."""

    def __init__(self) -> None:
        self._id = f"mm{os.getpid()}x{next(_NUMBERS)}"
        self._names = [self._name("sw")]
        ip("netns", "add", self._name("sw"))
        ip("-n", self._name("sw"), "link", "add", "br0", "type", "bridge")
        ip("-n", self._name("sw"), "link", "set", "br0", "up")

    def add(self, host: str, address: str) -> str:
        """A namespace with this address; returns its name for `ip netns exec`."""
        name, switch = self._name(host), self._name("sw")
        ip("netns", "add", name)
        self._names.append(name)
        ip("-n", name, "link", "add", "name", "eth0", "type", "veth", "peer", "name", host, "netns", switch)
        ip("-n", switch, "link", "set", "dev", host, "master", "br0", "up")
        ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", name, "link", "set", device, "up")
        return name

    def plug(self, host: str, state: str) -> None:
        """Pull the host's cable (`down`) or put it back (`up`)."""
        ip("-n", self._name("sw"), "link", "set", "dev", host, state)

    def close(self) -> None:
        for name in reversed(self._names):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True, timeout=10)

    def _name(self, host: str) -> str:
        return f"{self._id}-{host}"


class HostDaemon(Daemon):
    """A daemon in a namespace, on the Redis of all."""

    def __init__(self, namespace: str, tiers: tuple[str, ...], redis_socket: Path, strand_s: float) -> None:
        self.namespace, self._redis_socket = namespace, redis_socket
        self.folder = Path(tempfile.mkdtemp(prefix="mm-"))
        self.config = self.folder / "c.toml"
        text = CONFIG.format(folder=self.folder, redis=REDIS_ADDRESS, strand_s=strand_s)
        self.config.write_text(text + "".join(TIER.format(name=tier) for tier in tiers))
        self.start()

    def command(self) -> list[str]:
        run = [sys.executable, "-m", "metamusesd", "run", "--config", str(self.config)]
        return ["ip", "netns", "exec", self.namespace, *run]

    def client(self) -> Client:
        """From outside the namespaces: sockets in the file system reach everywhere."""
        return Client(f"unix://{self._redis_socket}")


class Hosts:
    """Redis and some daemons. `close` leaves nothing behind."""

    def __init__(self, strand_s: float = 60.0) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mm-"))
        self.daemons: dict[str, HostDaemon] = {}
        self._strand_s = strand_s
        self.network = Network()
        namespace = self.network.add("redis", REDIS_ADDRESS)
        self.socket = self.folder / "r.sock"
        command = ["ip", "netns", "exec", namespace, redis_program(), "--bind", REDIS_ADDRESS, "--port", "6379"]
        command += ["--protected-mode", "no", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        self.redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(self.socket.exists)

    def add(self, host: str, *tiers: str) -> HostDaemon:
        """Start a daemon that serves these tiers, on a host of its own."""
        namespace = self.network.add(host, f"{SUBNET}.{10 + len(self.daemons)}")
        daemon = self.daemons[host] = HostDaemon(namespace, tiers, self.socket, self._strand_s)
        return daemon

    def client(self) -> Client:
        return Client(f"unix://{self.socket}")

    def kill(self, host: str) -> None:
        """The power goes: the supervisor dies, and its children with it."""
        daemon = self.daemons.pop(host)
        daemon.process.send_signal(signal.SIGKILL)
        daemon.died()
        shutil.rmtree(daemon.folder, ignore_errors=True)

    def close(self) -> None:
        for daemon in self.daemons.values():
            daemon.close()
        self.redis.kill()
        self.redis.wait()
        self.network.close()
        shutil.rmtree(self.folder, ignore_errors=True)
