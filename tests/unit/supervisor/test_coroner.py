"""How a child died: who killed it, what it was at, what is kept of it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from metamusesd.board import Board, WorkerState
from metamusesd.control import WorkerSpec
from metamusesd.supervisor import coroner as coroners
from metamusesd.supervisor import proc
from metamusesd.supervisor.coroner import Coroner, phase_of
from metamusesd.supervisor.evidence import KEPT, Evidence, open_path
from metamusesd.supervisor.slot import Slot
from metamusesd.supervisor.spec import ChildSpec, Kind


@pytest.fixture
def worker() -> Slot:
    slot = Slot(ChildSpec("fast-0", Kind.WORKER, row=0, worker=WorkerSpec("fast-0", "fast", "small", (0,))))
    slot.started(0, None)  # no process: nothing is ever signalled
    slot.ready()
    return slot


@pytest.fixture
def board() -> Board:
    return Board(1)


@pytest.fixture
def coroner(board, tmp_path) -> Coroner:
    return Coroner(board, Evidence(tmp_path))


def test_a_kill_from_outside_is_told_from_our_own(worker, coroner):
    """SIGKILL that we did not send is an operator's, and explains the death; our own is a verdict."""
    death = coroner.examine(worker, signal.SIGKILL)
    assert (death.killed, death.explained, death.how) == (True, True, "killed by SIGKILL (from outside)")
    worker.we_killed, worker.hung = True, "no progress"
    death = coroner.examine(worker, signal.SIGKILL)
    assert (death.killed, death.explained, death.hung) == (False, False, "no progress")


def test_our_kill_of_a_worker_that_is_recycled_is_no_fault_of_its_jobs(worker, coroner):
    """It did not leave in time: killed, but nobody is to be blamed; unless it was hung."""
    worker.we_killed = worker.recycling = True
    assert coroner.examine(worker, signal.SIGKILL).killed
    worker.hung = "no progress"
    assert not coroner.examine(worker, signal.SIGKILL).killed


def test_whoever_stopped_a_worker_is_to_blame(worker, coroner):
    """SIGSTOP from outside, then our SIGKILL: hung, and no job's fault."""
    worker.we_killed, worker.was_stopped, worker.hung = True, True, "no progress"
    death = coroner.examine(worker, signal.SIGKILL)
    assert (death.killed, death.explained, death.how) == (True, True, "killed by SIGKILL (stopped from outside)")


def test_a_kill_for_want_of_memory_is_called_so(worker, coroner, monkeypatch):
    """The kernel's counter grew: out of memory, and the job may well be the reason."""
    monkeypatch.setattr(coroners.proc, "memory_kills", lambda: 10**6)
    death = coroner.examine(worker, signal.SIGKILL)
    assert (death.killed, death.how) == (False, "killed by SIGKILL (out of memory)")
    assert coroner.examine(worker, signal.SIGKILL).killed  # the counter stands still again


def test_a_death_that_takes_its_time_is_still_for_want_of_memory(worker, coroner, monkeypatch):
    """The counter grows when the signal is sent; the process is gone seconds later, after the next count."""
    coroner.count(100.0)
    monkeypatch.setattr(coroners.proc, "memory_kills", lambda: 10**6)
    coroner.count(106.0)
    assert coroner.examine(worker, signal.SIGKILL).how == "killed by SIGKILL (out of memory)"


def test_an_old_kill_of_somebody_else_is_forgotten(worker, coroner, monkeypatch):
    """Two counts later it has nothing to do with a death of ours."""
    monkeypatch.setattr(coroners.proc, "memory_kills", lambda: 10**6)
    for now_s in (100.0, 106.0, 107.0):
        coroner.count(now_s)
    assert coroner.examine(worker, signal.SIGKILL).killed


def test_evidence_is_read_off_the_row_before_it_is_cleared(worker, coroner, board, tmp_path):
    """Phase, memory, and the name of the file with its stacks."""
    worker.epoch = 1
    board.workers[0].write(state=WorkerState.PREFILL, slots_used=2, rss_bytes=80 << 20)
    open_path(tmp_path, "fast-0", 1).write_text("Fatal Python error: Segmentation fault")
    death = coroner.examine(worker, signal.SIGSEGV)
    said = death.evidence("fast-0", 4711)
    assert (said["phase"], said["rss_mb"], said["how"]) == ("prefill", 80, "killed by SIGSEGV")
    assert (tmp_path / said["stacks"]).read_text().startswith("Fatal")
    assert not death.explained  # it was given nothing, and lived for a moment


def test_a_row_in_the_middle_of_a_write_is_read_all_the_same(worker, coroner, board):
    """Its writer died while it wrote: the fields are still the best there is."""
    board.workers[0].write(state=WorkerState.DECODE, slots_used=1, jobs=3)
    board.workers[0]._words[0] |= 1
    death = coroner.examine(worker, signal.SIGSEGV)
    assert (death.phase, death.explained) == ("decode", True)


def test_work_explains_a_death(worker, coroner, board):
    """A frame was sent to it in this life."""
    worker.epoch = 1
    board.add_frame_sent(0)
    assert coroner.examine(worker, signal.SIGSEGV).explained


@pytest.mark.parametrize(
    ("row", "sent", "phase"),
    [
        ({"state": WorkerState.LOADING}, 0, "loading"),
        ({"state": WorkerState.IDLE, "frames_received": 1}, 1, "idle"),
        ({"state": WorkerState.IDLE, "frames_received": 1}, 2, "taking jobs"),
        ({"state": WorkerState.DECODE, "slots_used": 0, "frames_received": 1}, 1, "preparing"),
        ({"state": WorkerState.DECODE, "slots_used": 1}, 5, "decode"),
        ({"state": 99}, 0, "unknown"),
    ],
)
def test_phases_have_names(row, sent, phase):
    """Garbage in the row is called so."""
    assert phase_of(row, sent) == phase


def test_only_stacks_of_bad_deaths_are_kept_and_only_so_many(tmp_path):
    """Empty files go, those of a calm end go, and the oldest make room."""
    evidence = Evidence(tmp_path)
    open_path(tmp_path, "a", 1).touch()
    assert evidence.keep("a", 1, worth=True) == ""
    open_path(tmp_path, "a", 2).write_text("stacks")
    assert evidence.keep("a", 2, worth=False) == ""
    assert list(tmp_path.iterdir()) == []
    for generation in range(KEPT + 5):
        path = open_path(tmp_path, "b", generation)
        path.write_text("stacks")
        os.utime(path, (generation, generation))
        assert evidence.keep("b", generation, worth=True).startswith(f"b-{generation}-")
    kept = {path.name.split("-")[1] for path in tmp_path.iterdir()}
    assert kept == {str(generation) for generation in range(5, KEPT + 5)}


def test_what_a_killed_daemon_left_empty_is_removed(tmp_path):
    """The next start sweeps; what was written stays."""
    open_path(tmp_path, "a", 1).touch()
    open_path(tmp_path, "a", 2).write_text("stacks")
    Evidence(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a-2.stacks"]


def test_a_directory_that_cannot_be_written_costs_only_the_evidence(tmp_path):
    """A file where the directory should be."""
    (tmp_path / "evidence").write_text("")
    assert Evidence(tmp_path / "evidence").keep("a", 1, worth=True) == ""


def kernel_of(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_memory_kills_are_counted_on_the_host_and_in_both_kinds_of_cgroup(tmp_path):
    """vmstat, memory.events of version two, memory.oom_control of version one; what is not there is nothing."""
    kernel_of(tmp_path, proc__vmstat="nr_free 1\noom_kill 2\n")
    assert proc.memory_kills(tmp_path) == 2
    kernel_of(tmp_path, proc__self__cgroup="4:memory:/a/b\n3:cpu:/\n0::/c\n")
    (tmp_path / "sys/fs/cgroup/c").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/c/memory.events").write_text("oom 9\noom_kill 3\noom_group_kill 7\n")
    (tmp_path / "sys/fs/cgroup/memory/a/b").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory/a/b/memory.oom_control").write_text("oom_kill_disable 0\noom_kill 4\n")
    assert proc.memory_kills(tmp_path) == 9


def test_what_the_kernel_says_of_a_process(tmp_path):
    """Ourselves, and nobody."""
    assert proc.kernel_sight(os.getpid()).state == "R"
    assert proc.kernel_sight(os.getpid()).cpu_s > 0
    assert 0 < proc.private_bytes(os.getpid()) < 1 << 40
    assert proc.kernel_sight(4711, tmp_path) == proc.Kernel()
    assert proc.private_bytes(4711, tmp_path) == 0


def test_vectors_that_has_answered_has_worked(board, coroner):
    """A crash of vectors under questions is explained by them and costs it no budget; one out of nothing does."""
    slot = Slot(ChildSpec("vectors", Kind.VECTORS))
    slot.started(0, None)  # no process: nothing is ever signalled
    slot.ready()
    assert not coroner.examine(slot, signal.SIGSEGV).explained
    board.vectors.write(done=1)
    assert coroner.examine(slot, signal.SIGSEGV).explained
