"""Recycling: who is too large is replaced, one at a time, and not for ever."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from metamusesd import control
from metamusesd.config import Config
from metamusesd.control import WorkerSpec
from metamusesd.log import get_logger
from metamusesd.supervisor import recycle
from metamusesd.supervisor.recycle import PAUSE_MOST_S, PAUSE_S, Record, Recycling
from metamusesd.supervisor.retire import Retiring
from metamusesd.supervisor.slot import Slot
from metamusesd.supervisor.spec import ChildSpec, Kind

SMALL, LARGE = 50 << 20, 150 << 20


class Family:
    """Two workers of one tier without processes, a dispatcher that listens, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = Config()
        config = replace(config, tiers={"fast": replace(config.tiers["fast"], recycle_mb=100)})
        self.workers = [_worker(row) for row in (0, 1)]
        dispatcher = Slot(ChildSpec("dispatcher", Kind.DISPATCHER))
        dispatcher.control, self.heard = control.pair()
        self.heard.setblocking(False)
        self.sockets: list[socket.socket] = [dispatcher.control, self.heard]
        self.sizes = {worker.pid: SMALL for worker in self.workers}
        self.ended: list[str] = []
        monkeypatch.setattr(recycle, "private_bytes", lambda pid: self.sizes[pid])
        monkeypatch.setattr(Slot, "kill", lambda slot, *_: self.ended.append(slot.name))
        self.retiring = Retiring(config, self.workers, dispatcher, get_logger("test"))
        self.recycling = Recycling(config, self.workers, self.retiring, get_logger("test"))
        self.drain_s = config.daemon.drain_s
        self.now_s = 10_000.0

    def turn(self, later_s: float = 2.0) -> list[int]:
        """Rows that are retired at the next look."""
        self.now_s += later_s
        self.retiring.turn(self.now_s)
        self.recycling.turn(self.now_s)
        told = []
        while True:
            try:
                received = control.receive(self.heard)
            except BlockingIOError:
                return told
            assert received is not None
            assert received[0]["do"] == "retire"
            told.append(received[0]["row"])


def _worker(row: int) -> Slot:
    spec = WorkerSpec(f"fast-{row}", "fast", "smollm2", (row,))
    slot = Slot(ChildSpec(spec.name, Kind.WORKER, row=row, worker=spec))
    slot.started(10**8 + row, None)
    slot.ready()
    slot.epoch = row + 1
    return slot


@pytest.fixture
def family(monkeypatch):
    family = Family(monkeypatch)
    yield family
    for each in family.sockets:
        each.close()


def test_only_who_is_too_large_is_retired_and_ends_when_its_jobs_have(family):
    """The dispatcher is told once; its answer for another epoch is nothing; the right one ends the worker."""
    first = family.workers[0]
    assert family.turn() == []
    assert first.private_bytes == SMALL
    family.sizes[first.pid] = LARGE
    assert family.turn() == [0]
    assert family.turn() == []
    family.retiring.retired(0, 99)
    assert family.ended == []
    family.retiring.retired(0, first.epoch)
    family.retiring.retired(0, first.epoch)
    assert family.ended == ["fast-0"]


def test_jobs_that_do_not_end_are_not_waited_for_for_ever(family):
    """After drain_s and a little it ends all the same."""
    family.turn()
    family.sizes[family.workers[0].pid] = LARGE
    family.turn()
    family.turn(family.drain_s)
    assert family.ended == []
    family.turn(6)
    assert family.ended == ["fast-0"]


def test_one_of_a_tier_at_a_time(family):
    """The second one waits until the first is back."""
    family.turn()
    for worker in family.workers:
        family.sizes[worker.pid] = LARGE
    assert family.turn() == [0]
    assert family.turn() == []
    family.sizes[family.workers[0].pid] = SMALL
    family.workers[0].recycling = False
    assert family.turn() == [1]


def test_without_its_dispatcher_it_ends_at_once(family):
    """The pipe is gone and its jobs with it."""
    family.turn()
    family.sizes[family.workers[0].pid] = LARGE
    family.turn()
    family.retiring.parted(family.workers[0])
    family.retiring.parted(family.workers[1])
    assert family.ended == ["fast-0"]


def test_a_model_that_is_too_large_when_fresh_is_not_recycled_in_a_loop(family):
    """Over the limit right after loading: left alone for a pause that doubles."""
    first = family.workers[0]
    family.sizes[first.pid] = LARGE
    assert family.turn() == []
    assert family.turn(PAUSE_S - 5) == []
    assert family.turn(10) == [0]
    first.recycling, first.retire_s, first.private_bytes = False, 0.0, 0
    assert family.turn(2) == []
    assert family.turn(PAUSE_S + 5) == []
    assert family.turn(PAUSE_S) == [0]


def test_the_pause_doubles_and_recovers():
    """Growing back soon doubles the pause up to an hour; a long good life resets it."""
    record, now_s = Record(), 1000.0
    for _ in range(10):
        assert record.may(now_s)
        record = record.recycled(now_s)
        assert not record.may(now_s + record.pause_s - 1)
        now_s += record.pause_s
    assert record.pause_s == PAUSE_MOST_S
    assert record.recycled(now_s + 10 * PAUSE_MOST_S).pause_s == PAUSE_S
