"""`make systemd-test` sets SYSTEMD_TEST; else nothing here is collected: the default suite needs no root."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.systemd.box import Box, why_not
from tests.systemd.service import Service

collect_ignore_glob = [] if os.environ.get("SYSTEMD_TEST") else ["test_*.py"]


@pytest.fixture(scope="session")
def installed() -> Iterator[Service]:
    """The box, booted, and the service in it, installed and not started."""
    if reason := why_not():
        pytest.exit(f"the service cannot be tested under a systemd here: {reason}", returncode=1)
    box = Box()
    try:
        box.boot()
        service = Service(box)
        service.install()
        yield service
    finally:
        box.stop()


@pytest.fixture
def service(installed: Service) -> Iterator[Service]:
    """It runs, with the configuration of these tests, and is ready. Its journal is printed when a test fails."""
    installed.configure()
    installed.drop_in("")
    installed.systemctl("reset-failed", check=False)
    installed.systemctl("restart")
    installed.wait_ready()
    installed.box.run("journalctl", "--rotate")
    installed.box.run("journalctl", "--vacuum-time=1s")
    yield installed
    print(installed.journal()[-20_000:])


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a figure, whether the test fails or not."""

    def tell(line: str) -> None:
        with capsys.disabled():
            print(f"\n    {line}", end=" ")

    return tell
