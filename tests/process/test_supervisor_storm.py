"""The supervisor under many deaths: nothing leaks, nothing drifts."""

from __future__ import annotations

import os

import pytest

from tests.process.supervisor_rig import Daemon, kill, until

pytestmark = pytest.mark.timeout(120)


def test_descriptors_and_children_are_back_at_the_baseline_after_many_deaths(tmp_path):
    """Forty kills of workers and dispatchers later: as many descriptors and children as before, epochs only grown."""
    with Daemon(tmp_path / "d", daemon__restart_limit=1000, daemon__backoff_most_s=0.1) as daemon:
        before = _belongings(daemon.ready().process.pid)
        for round_number in range(40):
            name = ("fast-0", "dispatcher", "fast-1")[round_number % 3]
            pid = until(lambda name=name: daemon.children().get(name))
            kill(pid)
            until(lambda name=name, pid=pid: daemon.children().get(name, pid) != pid)
        daemon.ready()
        assert _belongings(daemon.process.pid) == before
        epochs = [note["epoch"] for note in daemon.notes("dispatcher", "link")]
        assert epochs == sorted(set(epochs))


def _belongings(pid: int) -> tuple[int, int]:
    """(open descriptors, children)."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return len(os.listdir(f"/proc/{pid}/fd")), len(file.read().split())
