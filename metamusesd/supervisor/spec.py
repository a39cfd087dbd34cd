"""Supervisor · what a child is: plain data, decided before anything is forked."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from metamusesd.control import WorkerSpec

DISPATCHER_ENTRY = "metamusesd.dispatcher.boot"
WORKER_ENTRY = "metamusesd.worker.boot"


class Kind(enum.Enum):
    """What a child does for a living."""

    REDIS = "redis"
    DISPATCHER = "dispatcher"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child. `entry` is a module with `main(birth: Birth) -> int`; Redis has none, it is another program."""

    name: str
    kind: Kind
    entry: str = ""
    row: int = -1
    worker: WorkerSpec | None = None


def child_specs(
    workers: Sequence[WorkerSpec],
    *,
    redis: bool,
    dispatcher_entry: str = DISPATCHER_ENTRY,
    worker_entry: str = WORKER_ENTRY,
) -> list[ChildSpec]:
    """Everybody, in the order of their start."""
    specs = [ChildSpec("redis", Kind.REDIS)] if redis else []
    specs.append(ChildSpec("dispatcher", Kind.DISPATCHER, dispatcher_entry))
    specs += [ChildSpec(worker.name, Kind.WORKER, worker_entry, row, worker) for row, worker in enumerate(workers)]
    return specs
