"""Hung or slow, with real workers: who stands still is found, replaced, and leaves its stacks; who is slow lives."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.process.supervisor_rig import Feeder, kill, until

pytestmark = pytest.mark.timeout(90)


def feeder(tmp_path, **overrides: object) -> Feeder:
    return Feeder(tmp_path / "d", tiers__fast__workers=1, **overrides)


@pytest.mark.parametrize("how", ["hang", "stall"])
def test_a_worker_that_stands_still_is_found_by_its_own_pace_and_leaves_its_stacks(tmp_path, how):
    """In C with the interpreter's lock held, or asleep: found long before hang_s, with the stacks of all threads."""
    with feeder(tmp_path, daemon__hang_s=600, daemon__hang_least_s=1) as daemon:
        daemon.ready().order(0, f"!tokens=100 !delay=50ms !{how}=step60")
        unlink = daemon.unlinked()
        evidence = unlink["evidence"]
        assert (unlink["hung"], unlink["killed"], unlink["exit"]) == (True, False, -signal.SIGABRT)
        assert (evidence["worker"], evidence["phase"]) == ("fast-0", "decode")
        assert "no progress" in evidence["hung"]
        stacks = (tmp_path / "d/evidence" / evidence["stacks"]).read_text()
        assert "engines/echo.py" in stacks
        assert "Fatal Python error: Aborted" in stacks
        until(lambda: daemon.worker("fast-0")["generation"] == 2)
        assert any(event.get("stacks") == evidence["stacks"] for event in daemon.events())


def test_a_worker_that_computes_for_ever_is_found_at_the_larger_limit(tmp_path):
    """It uses the CPU, so it may only be slow; after four times its limit, and hang_s, it is not believed any more."""
    with feeder(tmp_path, daemon__hang_s=2, daemon__hang_least_s=0.5) as daemon:
        daemon.ready().order(0, "!tokens=100 !delay=20ms !spin=step50")
        unlink = daemon.unlinked()
        assert "uses the CPU" in unlink["evidence"]["hung"]
        assert "_spin" in (tmp_path / "d/evidence" / unlink["evidence"]["stacks"]).read_text()


def test_a_worker_that_gets_slower_and_slower_is_left_alone(tmp_path):
    """Each step takes twice as long as the one before, at last longer than hang_s: every token comes."""
    with feeder(tmp_path, daemon__hang_s=2, daemon__hang_least_s=0.5) as daemon:
        daemon.ready().order(0, "!tokens=9 !slower=10ms")
        until(lambda: daemon.notes("dispatcher", "finished"))
        assert daemon.tokens() == 9
        assert daemon.worker("fast-0")["generation"] == 1


def test_a_first_step_may_take_its_time(tmp_path):
    """Nothing is known of a worker's steps yet: longer than the least patience is no hang."""
    with feeder(tmp_path, daemon__hang_s=30, daemon__hang_least_s=0.5) as daemon:
        daemon.ready().order(0, "!tokens=1 !delay=4s")
        until(lambda: daemon.notes("dispatcher", "finished"))
        assert daemon.worker("fast-0")["generation"] == 1


def test_a_supervisor_that_was_away_blames_nobody(tmp_path):
    """The whole family stands still for longer than every patience and goes on: nobody is replaced."""
    with feeder(tmp_path, daemon__hang_s=1, daemon__hang_least_s=0.5) as daemon:
        daemon.ready().order(0, "!tokens=10000 !delay=20ms")
        until(lambda: daemon.tokens() > 50)
        family = [daemon.process.pid, *daemon.children().values()]
        for pid in family:
            kill(pid, signal.SIGSTOP)
        time.sleep(4.0)
        for pid in family:
            kill(pid, signal.SIGCONT)
        heard = daemon.tokens()
        until(lambda: daemon.tokens() > heard + 100)
        assert daemon.worker("fast-0")["generation"] == 1
        assert daemon.status()["dispatcher"]["generation"] == 1


def test_a_stopped_worker_dies_without_another_word_and_no_sigcont_revives_it(tmp_path):
    """SIGSTOP in the middle of a job: SIGKILL while it is stopped, no job is blamed, a late SIGCONT finds nobody."""
    with feeder(tmp_path, daemon__hang_s=600, daemon__hang_least_s=1) as daemon:
        daemon.ready().order(0, "!tokens=10000 !delay=20ms")
        until(lambda: daemon.tokens() > 5)
        pid = daemon.children()["fast-0"]
        kill(pid, signal.SIGSTOP)
        unlink = daemon.unlinked()
        assert (unlink["hung"], unlink["killed"], unlink["exit"]) == (True, True, -signal.SIGKILL)
        with pytest.raises(ProcessLookupError):
            kill(pid, signal.SIGCONT)
        heard = daemon.tokens()
        until(lambda: len(daemon.notes("dispatcher", "hello")) == 2)
        assert daemon.tokens() == heard


def test_a_worker_that_was_sent_work_while_stopped_is_found_as_well(tmp_path):
    """It never reads its pipe: it owes the frames that it was sent."""
    with feeder(tmp_path, daemon__hang_s=600, daemon__hang_least_s=1) as daemon:
        kill(daemon.ready().children()["fast-0"], signal.SIGSTOP)
        daemon.order(0, "hello")
        assert daemon.unlinked()["evidence"]["phase"] == "taking jobs"


def test_who_killed_a_worker_is_told(tmp_path):
    """SIGKILL from outside: killed. A segmentation fault under a job: not, with its stacks."""
    with feeder(tmp_path) as daemon:
        kill(daemon.ready().children()["fast-0"])
        unlink = daemon.unlinked()
        assert (unlink["killed"], unlink["hung"], unlink["evidence"]["stacks"]) == (True, False, "")
        daemon.ready().order(0, "!tokens=5 !segv=step3")
        until(lambda: len(daemon.notes("dispatcher", "unlink")) == 2)
        unlink = daemon.notes("dispatcher", "unlink")[1]
        assert (unlink["killed"], unlink["exit"]) == (False, -signal.SIGSEGV)
        assert unlink["evidence"]["how"] == "killed by SIGSEGV"
        assert (tmp_path / "d/evidence" / unlink["evidence"]["stacks"]).stat().st_size


def test_a_worker_that_the_kernel_killed_for_memory_is_said_to_be_out_of_memory(tmp_path, memory_group):
    """SIGKILL by the kernel is nobody's intention: the job that was inside is to be blamed."""
    with feeder(tmp_path) as daemon:
        (memory_group / "cgroup.procs").write_text(str(daemon.ready().children()["fast-0"]))
        daemon.order(0, "!tokens=100 !leak=500MB")
        unlink = daemon.unlinked()
        assert (unlink["exit"], unlink["killed"]) == (-signal.SIGKILL, False)
        assert unlink["evidence"]["how"] == "killed by SIGKILL (out of memory)"


@pytest.fixture
def memory_group(tmp_path):
    """A cgroup of its own with little memory."""
    group = Path("/sys/fs/cgroup/memory") / f"metamusesd-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(100 << 20))
        with contextlib.suppress(OSError):  # without swap accounting there is nothing to limit
            (group / "memory.memsw.limit_in_bytes").write_text(str(100 << 20))
    except OSError:
        pytest.skip("may not make a memory cgroup of version one")
    yield group
    until(lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def test_fifty_poison_jobs_do_not_spend_the_restart_budget(tmp_path):
    """More deaths under jobs than restart_limit allows: the worker comes back every time."""
    with feeder(tmp_path, daemon__restart_limit=2, daemon__backoff_most_s=0.1) as daemon:
        daemon.ready()
        for deaths in range(1, 13):
            daemon.order(0, "!crash")
            until(lambda deaths=deaths: len(daemon.notes("dispatcher", "unlink")) == deaths)
            daemon.ready()
        daemon.order(0, "still here")
        until(lambda: daemon.tokens() == 2)
        assert daemon.worker("fast-0")["restarts"] == 12


def test_a_worker_that_grew_too_large_is_drained_and_replaced(tmp_path):
    """!leak past recycle_mb: its job ends, it leaves, a fresh one takes over, and no death is counted."""
    with feeder(tmp_path, tiers__fast__recycle_mb=100, daemon__restart_limit=0) as daemon:
        daemon.ready().order(0, "!tokens=100 !delay=50ms !leak=200MB")
        until(lambda: daemon.notes("dispatcher", "retired"))
        assert [note["event"] for note in daemon.notes("dispatcher") if note["event"] in ("retire", "finished")] == [
            "retire", "finished",
        ]  # fmt: skip
        assert daemon.tokens() == 100
        until(lambda: len(daemon.notes("dispatcher", "hello")) == 2)
        (unlink,) = daemon.notes("dispatcher", "unlink")
        assert (unlink["exit"], unlink["killed"], unlink["hung"]) == (0, False, False)
        daemon.ready()
        assert daemon.worker("fast-0")["private_bytes"] < 100 << 20
        said = [event["event"] for event in daemon.events()]
        assert ("recycling" in said, "recycled" in said, "child died" in said) == (True, True, False)
