"""Supervisor · the state directory: made, locked by one daemon, named by a UUID that lasts.

<state_dir>/lock         held by flock while a daemon runs; says its pid <state_dir>/instance     the UUID; with a
nonce it owns the claims of this daemon <state_dir>/redis/       the embedded server's files <state_dir>/redis/lock
held by the embedded server and its rewrite children: a start waits until they are gone
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from metamusesd.config import Config
from metamusesd.errors import ConfigError

POLL_S = 0.05
DYING_S = 2.0  # how long the lock of a daemon that was just killed may outlive it


@dataclass(frozen=True, slots=True)
class Home:
    """The locked state directory. The lock ends when `lock_fd` is closed."""

    lock_fd: int
    instance: str

    def close(self) -> None:
        """Give the lock up."""
        os.close(self.lock_fd)


def open_home(config: Config) -> Home:
    """Make the directories, take the lock, read the UUID. ConfigError: another daemon lives here, or no permission."""
    try:
        for directory in (config.state_dir, config.runtime_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = os.open(config.state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"daemon.state_dir: {error.filename} cannot be made or written ({error.strerror}); "
            "give a directory of your own with --set daemon.state_dir=DIR"
        ) from error
    if not _lock_or_refuse(lock_fd):
        pid = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock_fd)
        raise ConfigError(
            f"daemon.state_dir: {config.state_dir} belongs to a metamusesd that is running (pid {pid}); "
            "stop that one or give this one a directory of its own"
        )
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
    return Home(lock_fd, _instance(config.state_dir / "instance"))


def take_redis_lock(directory: Path) -> int | None:
    """The descriptor to hand to the embedded server, or None while an older server or its child holds the lock."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if _flock(fd):
        return fd
    os.close(fd)
    return None


def _lock_or_refuse(fd: int) -> bool:
    """Take the lock. A holder that is alive is respected at once; one that is dying gets a moment."""
    give_up_s = time.monotonic() + DYING_S
    while not _flock(fd):
        if _holder_lives(fd) or time.monotonic() > give_up_s:
            return False
        time.sleep(POLL_S)
    return True


def _flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder_lives(fd: int) -> bool:
    text = os.pread(fd, 32, 0).strip()
    return not text.isdigit() or Path(f"/proc/{int(text)}").exists()


def _instance(path: Path) -> str:
    try:
        return str(uuid.UUID(path.read_text("ascii").strip()))
    except (FileNotFoundError, ValueError):
        name = str(uuid.uuid4())
    draft = path.with_suffix(".new")
    draft.write_text(name + "\n", "ascii")
    draft.replace(path)
    return name
