"""Shell completion and the manual page: both from the parsers behind `--help`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from metamusesd import cli
from metamusesd.commands.completion import WHERE
from tests.unit.test_cli import run

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("shell", WHERE)
def test_every_shell_gets_every_command(shell: str) -> None:
    """The script names each command and the options of one that is far down."""
    done = run("completion", shell)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in cli.COMMANDS) and "derive" in done.stdout


def complete(script: Path, *words: str) -> list[str]:
    """What bash offers after these words, the last of them begun."""
    quoted = " ".join(f"'{word}'" for word in words)
    line = f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMP_LINE='{' '.join(words)}'; "
    line += f"_shtab_metamusesd metamusesd '{words[-1]}' '{words[-2]}'; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "--norc", "-c", line], capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_actions_options_and_values(tmp_path: Path) -> None:
    """Real bash, with the script sourced as a user would."""
    script = tmp_path / "metamusesd"
    script.write_text(run("completion", "bash").stdout)
    assert complete(script, "metamusesd", "doc") == ["doctor"]
    assert complete(script, "metamusesd", "dead", "") == ["list", "show", "retry", "drop"]
    assert complete(script, "metamusesd", "jobs", "--ten") == ["--tenant"]
    assert complete(script, "metamusesd", "jobs", "--state", "r") == ["ready", "running"]


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse words its usage differently elsewhere")
@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_the_manual_page_is_as_the_help_is(tmp_path: Path) -> None:
    """docs/metamusesd.1 is what `make man` writes now, but for its date: else run `make man`."""
    made = tmp_path / "metamusesd.1"
    command = ["make", "--silent", "man", f"BIN={Path(sys.executable).parent}", f"MAN={made}"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=50, capture_output=True)
    kept = (ROOT / "docs" / "metamusesd.1").read_text().splitlines()
    assert made.read_text().splitlines()[1:] == kept[1:], "docs/metamusesd.1 is stale; run `make man`"


def test_the_manual_page_has_every_command_and_exit_code() -> None:
    """Whoever reads only the page finds all there is."""
    text = (ROOT / "docs" / "metamusesd.1").read_text().replace("\\-", "-")
    assert all(f"metamusesd {name}'" in text for name in cli.COMMANDS)
    assert all(str(code) in text for code in cli.EXIT_CODES.values())
