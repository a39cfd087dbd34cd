"""Links: both sides hear of one epoch, or nobody counts it."""

from __future__ import annotations

import os
import resource
import socket
from types import SimpleNamespace

import pytest

from metamusesd import control
from metamusesd.control import WorkerSpec
from metamusesd.supervisor.coroner import Death
from metamusesd.supervisor.links import Links, part
from metamusesd.supervisor.slot import Slot
from metamusesd.supervisor.spec import ChildSpec, Kind


@pytest.fixture
def family():
    """A worker and a dispatcher with control channels, and the children's ends of them."""
    spec = WorkerSpec("fast-0", "fast", "small", (0,))
    worker = Slot(ChildSpec("fast-0", Kind.WORKER, row=0, worker=spec))
    dispatcher = Slot(ChildSpec("dispatcher", Kind.DISPATCHER))
    worker.control, workers_end = control.pair()
    dispatcher.control, dispatchers_end = control.pair()
    for each in (workers_end, dispatchers_end):
        each.setblocking(False)
    with worker.control, dispatcher.control, workers_end, dispatchers_end:
        yield worker, dispatcher, workers_end, dispatchers_end


def test_a_pair_gets_the_two_ends_of_one_pipe(family):
    """Same epoch, connected ends, and the supervisor keeps no copy: closing one end is EOF at the other."""
    worker, dispatcher, workers_end, dispatchers_end = family
    links = Links()
    assert links.join(worker, dispatcher)
    assert worker.epoch == 1
    (told_worker, fd), (told_dispatcher, other_fd) = control.receive(workers_end), control.receive(dispatchers_end)
    assert told_worker == told_dispatcher == {"do": "link", "row": 0, "epoch": 1, "worker": "fast-0", "tier": "fast"}
    os.write(fd, b"hello")
    assert os.read(other_fd, 10) == b"hello"
    os.close(fd)
    assert os.read(other_fd, 10) == b""
    os.close(other_fd)


def test_a_dispatcher_that_does_not_read_gets_its_link_later(family):
    """A full control channel is no link: the worker is not told, and the next try has a new epoch."""
    worker, dispatcher, workers_end, dispatchers_end = family
    while control.send(dispatcher.control, {"do": "nothing", "text": "x" * 10_000}):
        pass
    links = Links()
    assert not links.join(worker, dispatcher)
    assert worker.epoch == 0
    with pytest.raises(BlockingIOError):
        control.receive(workers_end)
    while True:
        try:
            control.receive(dispatchers_end)
        except BlockingIOError:
            break
    assert links.join(worker, dispatcher)
    assert worker.epoch == 2
    for end in (workers_end, dispatchers_end):
        os.close(control.receive(end)[1])


def test_out_of_descriptors_is_not_the_end(family):
    """Without a free descriptor there is no link now, and nothing raises."""
    worker, dispatcher, *_ = family
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as probe:
        resource.setrlimit(resource.RLIMIT_NOFILE, (probe.fileno(), hard))
        try:
            assert not Links().join(worker, dispatcher)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_death_is_told_with_its_evidence(family):
    """How it ended, whether it hung, whether somebody killed it; nothing for a worker that never had a link."""
    worker, dispatcher, _, dispatchers_end = family
    death = Death(exit=-6, how="killed by SIGABRT", lived_s=3.0, phase="decode", rss_mb=80, stacks="a", hung="b")
    part(worker, dispatcher, 0, 4711, death)
    part(worker, dispatcher, 3, 4711, death)
    evidence = {
        "worker": "fast-0", "pid": 4711, "how": "killed by SIGABRT", "phase": "decode", "rss_mb": 80, "hung": "b",
        "stacks": "a",
    }  # fmt: skip
    told = {"do": "unlink", "row": 0, "epoch": 3, "exit": -6, "hung": True, "killed": False, "evidence": evidence}
    assert control.receive(dispatchers_end) == (told, None)


@pytest.fixture
def vectors():
    """A vectors process that is starting, with its control channel."""
    slot = Slot(ChildSpec("vectors", Kind.VECTORS))
    ours, theirs = control.pair()
    theirs.setblocking(False)
    slot.started(0, ours)  # no process: nothing is ever signalled
    with ours, theirs:
        yield slot, theirs


def test_vectors_gets_its_pipe_when_it_is_ready(family, vectors):
    """Not before: nobody shall wait for its answers. Then both hear of one epoch, once."""
    _, dispatcher, _, dispatchers_end = family
    slot, vectors_end = vectors
    nursery = SimpleNamespace(workers=[], dispatcher=dispatcher, vectors=slot)
    links = Links()
    links.join_all(nursery)
    assert slot.epoch == 0
    slot.ready()
    for _ in range(2):
        links.join_all(nursery)
    (told, fd), (told_dispatcher, other_fd) = control.receive(vectors_end), control.receive(dispatchers_end)
    assert told == told_dispatcher == {"do": "vectors", "epoch": 1}
    os.write(fd, b"hello")
    assert os.read(other_fd, 10) == b"hello"
    for each in (fd, other_fd):
        os.close(each)
    with pytest.raises(BlockingIOError):
        control.receive(vectors_end)


def test_a_worker_gets_its_pipe_while_it_loads_and_none_while_it_is_recycled(family):
    """Its pipe waits for it."""
    worker, dispatcher, workers_end, dispatchers_end = family
    nursery = SimpleNamespace(workers=[worker], dispatcher=dispatcher, vectors=None)
    links = Links()
    worker.recycling = True
    links.join_all(nursery)
    assert worker.epoch == 0
    worker.recycling = False
    links.join_all(nursery)
    assert worker.epoch == 1
    for end in (workers_end, dispatchers_end):
        os.close(control.receive(end)[1])
