"""Memory that comes from a node: asked of the real kernel, in a process of its own."""

from __future__ import annotations

import os

import pytest

from metamusesd.supervisor import numa


def in_a_child(node: int) -> str:
    """What `prefer` says there; the policy ends with the child."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(writer, b"" + numa.prefer(node).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with open(reader, "rb") as said:
        return said.read().decode()


def test_a_node_that_is_there():
    """Node 0 is on every host: the kernel takes it, or says why not where a sandbox forbids the call."""
    said = in_a_child(0)
    assert said == "" or said.startswith("set_mempolicy: ")


@pytest.mark.parametrize("node", [-1, numa.NODES_MOST])
def test_a_node_that_cannot_be(node):
    """Refused before the kernel is asked."""
    assert f"node {node} is not one of 0 to" in in_a_child(node)


def test_a_node_that_is_not_there():
    """The kernel's word is passed on, and nothing raises."""
    assert in_a_child(900).startswith("set_mempolicy: ")


def test_an_unknown_machine(monkeypatch):
    """Where the number of the call is not known, memory comes from wherever it comes, and that is said."""
    monkeypatch.setattr(numa, "CALLS", {})
    assert "is not known for" in numa.prefer(0)
