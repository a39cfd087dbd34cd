"""The state directory: one daemon at a time, one name for ever."""

from __future__ import annotations

import os
import uuid

import pytest

from metamusesd import config
from metamusesd.errors import ConfigError
from metamusesd.supervisor.state_dir import open_home


@pytest.fixture
def loaded(tmp_path):
    return config.load(environ={}, overrides={"daemon.state_dir": str(tmp_path / "state")})


def test_the_instance_has_a_name_that_lasts(loaded):
    """The UUID is made once and read ever after; a broken file is replaced."""
    first = open_home(loaded)
    first.close()
    second = open_home(loaded)
    second.close()
    assert first.instance == second.instance == str(uuid.UUID(first.instance))
    (loaded.state_dir / "instance").write_text("no uuid")
    third = open_home(loaded)
    third.close()
    assert third.instance != first.instance


def test_only_one_daemon_at_a_time(loaded):
    """The second is refused with the pid of the first, and comes in when the first has left."""
    first = open_home(loaded)
    with pytest.raises(ConfigError, match=rf"running \(pid {os.getpid()}\)"):
        open_home(loaded)
    first.close()
    open_home(loaded).close()


def test_a_directory_that_cannot_be_made_is_a_mistake_with_a_remedy(tmp_path):
    """The line names the key and what to do."""
    (tmp_path / "file").write_text("")
    loaded = config.load(environ={}, overrides={"daemon.state_dir": str(tmp_path / "file/state")})
    with pytest.raises(ConfigError, match=r"daemon.state_dir: .* give a directory of your own"):
        open_home(loaded)
