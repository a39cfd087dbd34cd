"""Supervisor · what a child is: plain data, decided before anything is forked."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from metamusesd.control import WorkerSpec


class Kind(enum.Enum):
    """What a child does for a living."""

    REDIS = "redis"
    DISPATCHER = "dispatcher"
    VECTORS = "vectors"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Entries:
    """The modules that are our children's lives."""

    dispatcher_entry: str = "metamusesd.dispatcher.boot"
    vectors_entry: str = "metamusesd.vectors.boot"
    worker_entry: str = "metamusesd.worker.boot"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child. `entry` is a module with `main(birth: Birth) -> int`; Redis has none, it is another program."""

    name: str
    kind: Kind
    entry: str = ""
    row: int = -1
    worker: WorkerSpec | None = None


def child_specs(workers: Sequence[WorkerSpec], entries: Entries, *, redis: bool, vectors: bool) -> list[ChildSpec]:
    """Everybody, in the order of their start."""
    specs = [ChildSpec("redis", Kind.REDIS)] if redis else []
    specs.append(ChildSpec("dispatcher", Kind.DISPATCHER, entries.dispatcher_entry))
    specs += [ChildSpec("vectors", Kind.VECTORS, entries.vectors_entry)] if vectors else []
    for row, worker in enumerate(workers):
        specs.append(ChildSpec(worker.name, Kind.WORKER, entries.worker_entry, row, worker))
    return specs
