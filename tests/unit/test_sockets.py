"""UNIX sockets that take commands: their rights, and who calls there."""

from __future__ import annotations

import os
import socket

import pytest

from metamusesd.sockets import bind, is_welcome, peer_of


def test_our_own_user_and_root_are_welcome():
    """Nobody else is."""
    assert is_welcome(os.geteuid())
    assert is_welcome(0)
    assert not is_welcome(os.geteuid() + 1)
    one, other = socket.socketpair()
    with one, other:
        assert peer_of(one) == (os.getpid(), os.getuid(), os.getgid())


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_a_socket_has_its_mode_and_replaces_a_stale_one(tmp_path, mode):
    """From its first moment; a file that is no socket stays."""
    for _ in range(2):
        with bind(tmp_path / "s", mode):
            assert (tmp_path / "s").stat().st_mode & 0o777 == mode
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="in the way"):
        bind(tmp_path / "file", 0o600)
