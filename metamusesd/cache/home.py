"""Stage 4 · vectors process · the directory of an embedded store: who may use it, and which shard in it counts.

    <directory>/lock         held while open: one process at a time; holds its pid
    <directory>/store.json   {"format": 1, "dimension": 384, "distance": "cosine", "shard": "shard-2", "dead": 17}
    <directory>/shard-2/     what store.json names; any other shard-* is the leftover of a crash

store.json is replaced atomically, so that whenever the process dies it names a whole shard.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

import msgspec

from metamusesd.cache.base import DIMENSION
from metamusesd.cache.payload import FORMAT
from metamusesd.errors import StoreBroken, StoreFailed, StoreRefused

REMEDY = "delete the directory (only cached answers are lost), or choose another cache.collection"


class Notes(msgspec.Struct, frozen=True, kw_only=True):
    """store.json."""

    format: int = FORMAT
    dimension: int = DIMENSION
    distance: str = "cosine"
    shard: str = "shard-1"
    dead: int = 0  # rows of removed entries, about


class Home:
    """One directory. Call it from one thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock: int | None = None

    def enter(self) -> None:
        """Make it and lock it. Raises StoreRefused when another one has it, StoreFailed when it cannot be made."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._take(self._lock)
        except OSError as error:
            self.leave()
            raise StoreFailed(f"{self.directory} cannot be used: {error.strerror}") from error
        except StoreRefused:
            self.leave()
            raise

    def leave(self) -> None:
        """Unlock it. Legal twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self, dimension: int) -> Notes | None:
        """What store.json says; None: there is none. Raises StoreBroken when it cannot be read, StoreRefused
        when it is of another kind."""
        path = self.directory / "store.json"
        try:
            notes = msgspec.json.decode(path.read_bytes(), type=Notes)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreFailed(f"{path} cannot be read: {error.strerror}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StoreBroken(f"{path} is broken: {error}; {REMEDY}") from error
        for name, must in (("format", FORMAT), ("dimension", dimension), ("distance", "cosine")):
            if (found := getattr(notes, name)) != must:
                raise StoreRefused(f"{path}: {name} is {found}, and must be {must}; {REMEDY}")
        if not notes.shard.removeprefix("shard-").isdecimal():
            raise StoreBroken(f"{path} names no shard; {REMEDY}")
        return notes

    def write(self, notes: Notes) -> None:
        """Replace store.json. Raises StoreFailed; then the old one counts."""
        new = self.directory / "store.json.new"
        try:
            with open(new, "wb") as file:
                file.write(msgspec.json.encode(notes))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.directory / "store.json")
        except OSError as error:
            raise StoreFailed(f"{new} cannot be written: {error.strerror}") from error

    def clear(self, keep: str) -> None:
        """Remove every shard but this one; what cannot be removed now is removed the next time."""
        for shard in self.directory.glob("shard-*"):
            if shard.name != keep:
                shutil.rmtree(shard, ignore_errors=True)

    def set_aside(self) -> Path:
        """Damaged files make room, and are kept for whoever wants to look; those of the last time go. Raises
        StoreFailed."""
        aside = self.directory / "broken"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(exist_ok=True)
            for path in (*self.directory.glob("shard-*"), *self.directory.glob("store.json*")):
                path.rename(aside / path.name)
        except OSError as error:
            raise StoreFailed(f"{self.directory}: damaged files cannot be set aside: {error.strerror}") from error
        return aside

    def inode(self, shard: str) -> int:
        """Of a shard's files; 0: they are gone. Edge would go on to serve a removed directory from mapped memory."""
        try:
            return (self.directory / shard / "segments").stat().st_ino
        except OSError:
            return 0

    def bytes(self) -> int:
        """On the disk."""
        total = 0
        for file in self.directory.rglob("*"):
            with contextlib.suppress(OSError):  # gone since it was listed
                total += file.stat().st_blocks * 512
        return total

    def _take(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(lock, 20).decode(errors="replace") or "another one"
            raise StoreRefused(
                f"{self.directory} is in use by process {holder}; stop that one, or choose another state_dir"
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
