"""The thread between the supervisor and each child (small JSON messages, with descriptors), and a child's birth.

A SOCK_SEQPACKET socketpair a child: one message a packet, at most one descriptor with it. EOF at the child's end
means that the supervisor is gone (PR_SET_PDEATHSIG kills the child anyway); EOF at the supervisor's end means that
the child is gone.

    supervisor ──► any child   {"do": "link", "row", "epoch", "worker", "tier"} + one end of the pipe's socketpair
    supervisor ──► dispatcher  {"do": "unlink", "row", "epoch", "exit", "hung", "killed", "evidence": {…}}   this worker
                               died, and how. killed: by SIGKILL from outside, not for want of memory; by us only
                               when somebody had stopped it, or when it was to be replaced anyway.
                               evidence: {worker, pid, how, phase, rss_mb, hung, stacks}, each for people;
                               stacks: a file's name in <state_dir>/evidence, or nothing
    supervisor ──► dispatcher  {"do": "retire", "row", "epoch"}   send it nothing more; it is to be replaced
    dispatcher ──► supervisor  {"say": "retired", "row", "epoch"}   this worker holds no job any more
    supervisor ──► dispatcher  {"do": "resume", "row", "epoch"}   it may have jobs again
    supervisor ──► dispatcher  {"do": "asleep", "tiers": {tier: seconds of its last load}}   these sleep, and no others
    dispatcher ──► supervisor  {"say": "wanted", "tier"}   a job waits for a tier that sleeps
    supervisor ──► dispatcher  {"do": "drain", "within_s"}   stop claiming, finish or give back, then exit 0
    supervisor ──► dispatcher, vectors   {"do": "vectors", "epoch"} + one end of their pipe's socketpair; a larger epoch
                               replaces the pipe before it. EOF on it: vectors is gone, or will get another pipe
    child ──► supervisor       {"say": "ready", …}   a worker: model facts; the others: nothing more
    worker, vectors ──► supervisor   {"say": "relink", "epoch"}   its pipe of this epoch broke (EOF, garbage): make a
                               new one
    dispatcher ──► supervisor  {"say": "relink vectors", "epoch"}   the same, said by the other end
    vectors ──► supervisor     {"say": "trouble", "problem"}   it serves, but not well (its store is away); "": over
    child ──► supervisor       {"say": "failed", "error": {…}, "permanent": bool}   before it exits at boot

Both ends of every pipe travel this way, to the older and to the younger process alike; the supervisor closes its
copies.
"""

from __future__ import annotations

import array
import json
import os
import socket
from dataclasses import dataclass
from typing import Any

from metamusesd.board import Board
from metamusesd.config import Config

MAX_MESSAGE_BYTES = 65_536
EXIT_BAD_CONFIG = 78  # EX_CONFIG: a permanent mistake; not restarted, neither by us nor by systemd
EXIT_BOOT = 70  # could not start
EXIT_DIED = 71  # was running, and cannot go on


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker slot as placement decided it. Plain data."""

    name: str  # fast-0
    tier: str
    model: str  # its name in the configuration
    cores: tuple[int, ...]
    gpus: tuple[str, ...] = ()
    slots: int = 8
    reserve_slots: int = 4
    nodes: tuple[int, ...] = ()  # the memory nodes of its cores, on a host with several

    @property
    def threads(self) -> int:
        """As many as it has cores."""
        return max(1, len(self.cores))


@dataclass(frozen=True, slots=True)
class Birth:
    """What a child finds when its `main(birth)` is called, right after the fork. Returns its exit code."""

    name: str
    config: Config
    board: Board
    control: socket.socket
    instance: str  # UUID of this state directory; with a nonce it is the owner of claims
    generation: int  # counts the starts of this child
    row: int = -1  # a worker's row of the board
    worker: WorkerSpec | None = None
    trial: bool = False  # a worker on trial: it shows what it can before it says that it is ready (worker/canary.py)


def pair() -> tuple[socket.socket, socket.socket]:
    """(supervisor's end, child's end); neither is inherited by an exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, message: dict[str, Any], fd: int | None = None) -> bool:
    """Send without blocking. False: the other side is gone or does not read; the caller decides what that means."""
    data = json.dumps(message).encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
    try:
        channel.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return True
    except OSError:
        return False


def receive(channel: socket.socket) -> tuple[dict[str, Any], int | None] | None:
    """One message and its descriptor (the caller closes it), or None at EOF. Raises BlockingIOError when idle."""
    try:
        data, ancillary, _, _ = channel.recvmsg(MAX_MESSAGE_BYTES, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None  # it has gone, and left something unread
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data:
        return None
    for extra in fds[1:]:
        os.close(extra)
    return json.loads(data), (fds[0] if fds else None)
