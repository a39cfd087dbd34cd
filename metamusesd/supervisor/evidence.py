"""Supervisor · what a dead child leaves behind: the stacks that faulthandler wrote in its last moment.

    <state_dir>/evidence/<child>-<generation>.stacks              open in the living child; empty as long as it is well
    <state_dir>/evidence/<child>-<generation>-<when>.stacks       it died of a signal or was hung; the newest KEPT

faulthandler writes all threads' stacks from the signal handler itself: also when the interpreter's lock is held in C.
"""

from __future__ import annotations

import time
from pathlib import Path

KEPT = 20


class Evidence:
    """The directory. A full or read-only disk costs the evidence and nothing else."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in directory.glob("*.stacks"):  # of a daemon that was killed: we hold its lock, nobody writes here
                if not path.stat().st_size:
                    path.unlink()
        except OSError:
            pass

    def keep(self, child: str, generation: int, worth: bool) -> str:
        """After its burial: keep what it wrote, if it did and it is worth it. Returns the file's name, or nothing."""
        path = open_path(self._directory, child, generation)
        try:
            if not worth or not path.stat().st_size:
                path.unlink()
                return ""
            kept = path.with_stem(f"{path.stem}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
            path.replace(kept)
            self._trim()
            return kept.name
        except OSError:
            return ""

    def _trim(self) -> None:
        kept = sorted(self._directory.glob("*Z.stacks"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-KEPT]:
            path.unlink()


def open_path(directory: Path, child: str, generation: int) -> Path:
    """Where a living child would write its stacks."""
    return directory / f"{child}-{generation}.stacks"
