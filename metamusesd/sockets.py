"""Supervisor, vectors · UNIX sockets that take commands: made with their rights at once, and who calls there."""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


def bind(path: Path, mode: int) -> socket.socket:
    """A socket at `path` that does not listen yet. A stale one is replaced (the state directory's lock says that nobody
    lives there); OSError when something else is in the way."""
    if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
        raise OSError(f"{path} is in the way and is not a socket")
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bound.setblocking(False)
    before = os.umask(0o777 & ~mode)  # so that it is never there with other rights, not even for a moment
    try:
        bound.bind(os.fspath(path))
    except OSError:
        bound.close()
        raise
    finally:
        os.umask(before)
    return bound


def peer_of(connection: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of who has connected, as the kernel knows him."""
    pid, uid, gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid, gid


def is_welcome(uid: int) -> bool:
    """The daemon's own user, and root."""
    return uid in (0, os.geteuid())
