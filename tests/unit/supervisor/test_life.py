"""What a worker finds when its engine is imported: its GPUs, by index or UUID, and its memory's node asked for."""

from __future__ import annotations

import os
import sys

import pytest

from metamusesd.board import Board
from metamusesd.config import Config, Daemon
from metamusesd.control import Birth, WorkerSpec, pair
from metamusesd.supervisor import fork

ENTRY = """
import os
SEEN = [os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")]
def main(birth):
    os.write({writer}, ",".join(SEEN).encode())
    return 0
"""


@pytest.mark.parametrize(
    ("gpus", "seen"),
    [(("1",), "1,PCI_BUS_ID"), (("GPU-8f2c", "GPU-77aa"), "GPU-8f2c,GPU-77aa,PCI_BUS_ID"), ((), ",")],
)
def test_gpus_are_named_before_the_entry_is_imported(tmp_path, monkeypatch, gpus, seen):
    """CUDA reads the variables once, when its library is loaded: they must stand before the entry's first import."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    reader, writer = os.pipe()
    (tmp_path / "entry_with_gpus.py").write_text(ENTRY.format(writer=writer))
    ours, theirs = pair()
    spec = WorkerSpec("fast-0", "fast", "small", (0,), gpus)
    birth = Birth("fast-0", Config(daemon=Daemon(state_dir=str(tmp_path))), Board(1), theirs, "i", 1, 0, spec)
    life = fork.python_life("entry_with_gpus", birth)
    if (pid := os.fork()) == 0:
        sys.path.insert(0, str(tmp_path))
        os._exit(life())
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with open(reader, "rb") as said:
        assert said.read().decode() == seen
    ours.close()
    theirs.close()


@pytest.mark.parametrize(("nodes", "asked"), [((1,), [1]), ((0, 1), []), ((), [])])
def test_memory_of_one_node_is_asked_for(monkeypatch, nodes, asked):
    """Cores of one node: its memory is preferred. Of several nodes, or on a host with one: nothing is asked."""
    found: list[int] = []
    monkeypatch.setattr(fork.numa, "prefer", lambda node: found.append(node) or "not permitted")
    fork._place("fast-0", WorkerSpec("fast-0", "fast", "small", (0,), nodes=nodes))
    assert found == asked
