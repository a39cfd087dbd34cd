"""Stage 0 · command line · the daemon's files and sockets, for `doctor`: room, who may read what, what is running."""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from metamusesd.commands.symptoms import MIB, Finding
from metamusesd.config import EMBEDDED, Config
from metamusesd.control import WorkerSpec

LEAST_ROOM = 1 << 30  # bytes; with less the append-only file soon stops the queue
LEAST_SHARE = 0.05


def of_daemon(
    config: Config, answer: Mapping[str, Any] | None, away: str, *, closed: bool = False
) -> Iterator[Finding]:
    """`away`: why there is no answer. `closed`: this user may not ask."""
    if answer is None and closed:
        why = "what follows is about this machine and this user, not about a daemon that may run here"
        yield Finding("daemon", "warn", away, why, "sudo metamusesd doctor")
        return
    if answer is None:
        yield Finding("daemon", "ok", f"not running: {away}")
        return
    state, reasons = answer.get("state", "?"), answer.get("reasons", [])
    fact = f"pid {answer.get('pid')}, {state}{': ' if reasons else ''}{'; '.join(reasons)}"
    if reasons:
        yield Finding("daemon", "bad", fact, "it takes no work", "`metamusesd status` has a remedy for each")
    else:
        yield Finding("daemon", "ok", fact)
    if (started := answer.get("config")) and started != config.source:
        yield Finding(
            "daemon",
            "warn",
            f"it was started with {started}; doctor looks at {config.source}",
            "what is said here may not be what it does",
            f"run doctor with --config {started}",
        )


def workers_of(answer: Mapping[str, Any]) -> tuple[WorkerSpec, ...]:
    """The workers that run, as /status names them."""
    return tuple(
        WorkerSpec(each.get("name", "?"), each.get("tier", "?"), each.get("model", "?"), tuple(each.get("cores", ())),
                   tuple(each.get("gpus", ())), each.get("slots", 0))
        for each in answer.get("workers", [])
    )  # fmt: skip


def of_drift(running: Sequence[WorkerSpec], planned: Sequence[WorkerSpec]) -> Iterator[Finding]:
    """Whether what runs is what this configuration would make now."""
    now, wanted = ({(each.name, each.model, each.cores, each.gpus) for each in those} for those in (running, planned))
    if planned and now != wanted:
        names = ", ".join(sorted({name for name, *_ in now ^ wanted}))
        yield Finding(
            "daemon",
            "warn",
            f"other workers run than this configuration makes: {names} differ",
            "the file, the cores or the measured rates have changed since it started",
            "`metamusesd check --explain` shows what it would be, `metamusesd reload` makes it so",
        )


def of_weights(config: Config) -> Iterator[Finding]:
    """Models with `format = auto`: whether what bench has chosen for this host holds."""
    for name, choice in config.choices.items():
        if choice.remedy:
            fact = f"models.{name}.format is auto, and {choice.why}"
            yield Finding("models", "warn", fact, f"{choice.file} is loaded as it is", choice.remedy)
        else:
            yield Finding("models", "ok", f"{name}: {choice.file}, {choice.why}")


def of_disks(config: Config) -> Iterator[Finding]:
    """Room where the state and the models are."""
    for option, path in (("daemon.state_dir", config.state_dir), ("daemon.models_dir", config.models_dir)):
        place = next(each for each in (path, *path.parents) if mode_of(each) is not None)
        room = os.statvfs(place)
        free, total = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
        fact = f"{free // MIB} MiB of {total // MIB} MiB free under {path}"
        if option == "daemon.state_dir" and free < min(LEAST_ROOM, total * LEAST_SHARE):
            why = "the append-only file grows with every job; a full disk stops the queue"
            yield Finding("disk", "bad" if free < 64 * MIB else "warn", fact, why, f"make room, or another {option}")
        else:
            yield Finding("disk", "ok", fact)


def of_permissions(config: Config) -> Iterator[Finding]:
    """A secret in the configuration, the state directory, the sockets: who gets at them."""
    path = Path(config.source)
    mode = mode_of(path) or 0
    if _holds_secret(config) and mode & 0o007:
        yield Finding(
            "permissions",
            "bad",
            f"everybody may read {path} (mode {mode:04o}), and a password stands in it",
            "whoever logs in here owns the queue",
            f"chmod 0640 {path}; chown root:metamusesd {path}",
        )
    loose = [each for each in (config.state_dir, config.evidence_dir) if (mode_of(each) or 0) & 0o027]
    for each in loose:
        yield Finding(
            "permissions",
            "warn",
            f"{each} is open to others (mode {mode_of(each):04o})",
            "prompts and answers lie in the embedded Redis' files",
            f"chmod 0700 {each}",
        )
    open_sockets = [each for each in _sockets(config) if (mode_of(each) or 0) & 0o006 and _entrance(each) & 0o001]
    for each in open_sockets:
        yield Finding(
            "permissions",
            "warn",
            f"everybody may talk to {each} (mode {mode_of(each):04o})",
            "any user here may read and submit jobs",
            f"chmod 0750 {each.parent}",
        )
    if not loose and not open_sockets:
        sockets = _sockets(config)
        yield Finding("permissions", "ok", f"sockets for {_who(sockets[0])} only" if sockets else "nothing is too open")


def _holds_secret(config: Config) -> bool:
    return bool(config.cache.qdrant_api_key) or (config.redis.url != EMBEDDED and "@" in config.redis.url)


def _sockets(config: Config) -> list[Path]:
    try:
        return sorted(path for path in config.runtime_dir.iterdir() if path.suffix == ".sock")
    except OSError:
        return []


def mode_of(path: Path) -> int | None:
    """None: it is not there, or we may not look."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None


def _entrance(path: Path) -> int:
    """What the directories on the way let through."""
    return min(((mode_of(parent) or 0) & 0o001 for parent in path.parents), default=0)


def _who(path: Path) -> str:
    status = path.parent.stat()
    group = f" and group {_group(status.st_gid)}" if status.st_mode & 0o010 else ""
    return f"uid {status.st_uid}{group}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
