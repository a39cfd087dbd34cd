"""README.md's example of the library, run as it stands there."""

import re
import subprocess
import sys

from metamusesd.config import EMBEDDED
from tests.e2e.conftest import ROOT, Daemon


def example() -> str:
    """The Python block of the section about the library."""
    page = (ROOT / "README.md").read_text("utf-8")
    (found,) = re.findall(r"^## As a library\n\n```python\n(.*?)^```$", page, re.M | re.S)
    return str(found)


def test_the_example_is_ten_lines_and_answers(daemon: Daemon) -> None:
    """Pasted into a file and run with only the configuration in the environment, it prints an answer and its usage."""
    code = example()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    assert daemon.config.redis.url == EMBEDDED
    environ = daemon.environ | {"METAMUSESD_DAEMON__STATE_DIR": daemon.config.daemon.state_dir, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environ, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage(prompt_tokens=" in done.stdout and "Timings(queue_ms=" in done.stdout
