"""Workers whose cores were taken away by a changed cpuset: complained about, and put back when that can be."""

from __future__ import annotations

import os
from collections.abc import Collection

from metamusesd.board import Board
from metamusesd.control import WorkerSpec
from metamusesd.log import get_logger
from metamusesd.supervisor.seats import LOOK_S, Seats
from metamusesd.supervisor.slot import Slot
from metamusesd.supervisor.spec import ChildSpec, Kind


def worker(*cores: int, pid: int | None = None) -> Slot:
    spec = ChildSpec("fast-0", Kind.WORKER, row=0, worker=WorkerSpec("fast-0", "fast", "small", cores))
    slot = Slot(spec, Board(1).slots[0])
    slot.started(os.getpid() if pid is None else pid, None)
    slot.ready()
    return slot


class Kernel:
    """Which cores the worker may use; `put` works on those that the cpuset has."""

    def __init__(self, cpuset: set[int], now: set[int]) -> None:
        self.cpuset, self.now, self.puts = cpuset, now, 0

    def allowed(self, _pid: int) -> Collection[int]:
        return self.now

    def put(self, _pid: int, cores: Collection[int]) -> None:
        self.puts += 1
        if not set(cores) & self.cpuset:
            raise OSError(22, "Invalid argument")
        self.now = set(cores) & self.cpuset


def test_a_worker_without_its_core_is_told_and_told_once():
    """The complaint names the worker, its core, the cores that are left and the remedy; it goes when it is over."""
    kernel, slot = Kernel({0}, {0}), worker(1)
    seats = Seats(get_logger("supervisor"), kernel.allowed, kernel.put)
    seats.look([slot], LOOK_S)
    assert seats.complaints["fast-0"].startswith("fast-0 is to run on core 1 and may run on 0 only: the cpuset")
    kept = seats.complaints
    kernel.cpuset = {0, 1}
    seats.look([slot], 2 * LOOK_S)
    assert kept == {} and kernel.now == {1}


def test_who_can_be_put_back_is_put_back_without_a_complaint():
    """An older kernel gives every process the whole new cpuset: the worker is pinned again."""
    kernel, slot = Kernel({0, 1, 2}, {0, 1, 2}), worker(1, 2)
    seats = Seats(get_logger("supervisor"), kernel.allowed, kernel.put)
    seats.look([slot], LOOK_S)
    assert seats.complaints == {} and kernel.now == {1, 2}


def test_half_of_its_cores_is_not_enough():
    """A worker with two threads on one core is as slow as on none: told."""
    kernel, slot = Kernel({1}, {1}), worker(1, 2)
    seats = Seats(get_logger("supervisor"), kernel.allowed, kernel.put)
    seats.look([slot], LOOK_S)
    assert "core 1+2 and may run on 1 only" in seats.complaints["fast-0"]


def test_nobody_is_looked_at_too_often_or_without_cores():
    """The kernel is asked every LOOK_S at most; a worker that was given no cores may be anywhere."""
    kernel = Kernel({0}, {0})
    seats = Seats(get_logger("supervisor"), kernel.allowed, kernel.put)
    seats.look([worker()], LOOK_S)
    seats.look([worker(1)], LOOK_S + 0.1)
    assert seats.complaints == {} and kernel.puts == 0
    seats.look([worker(1)], 2 * LOOK_S)
    assert seats.complaints


def test_a_worker_that_is_gone_is_not_misplaced():
    """It died between the look at the table and the question to the kernel."""

    def gone(_pid: int) -> Collection[int]:
        raise ProcessLookupError(3, "No such process")

    seats = Seats(get_logger("supervisor"), gone)
    seats.look([worker(1)], LOOK_S)
    assert seats.complaints == {}


def test_real_threads_are_put_back():
    """On the real kernel: this process, moved to one core, is put on the one that it was given."""
    mine = sorted(os.sched_getaffinity(0))
    try:
        os.sched_setaffinity(0, {mine[-1]})
        seats = Seats(get_logger("supervisor"))
        seats.look([worker(mine[0])], LOOK_S)
        assert os.sched_getaffinity(0) == {mine[0]}
        assert seats.complaints == {}
    finally:
        os.sched_setaffinity(0, mine)
