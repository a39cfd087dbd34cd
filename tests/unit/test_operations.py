"""docs/operations.md: what must not be missing there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from metamusesd import cli
from metamusesd.commands import control, doctor, status
from metamusesd.control import EXIT_BAD_CONFIG, EXIT_BOOT, EXIT_DIED

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "operations.md").read_text("utf-8")


def codes_of(table: str) -> set[int]:
    """The numbers in the first column of the table whose head begins so."""
    rows = PAGE[PAGE.index(f"| {table} |") :].split("\n\n")[0].splitlines()[2:]
    return {int(number) for row in rows for number in re.findall(r"\d+", row.split("|")[1])}


def test_every_exit_code_is_explained() -> None:
    """Those of the daemon, and those of all commands."""
    assert codes_of("the daemon's code") == {0, EXIT_BAD_CONFIG, EXIT_BOOT, EXIT_DIED}
    commands = {*cli.EXIT_CODES.values(), *control.CODES.values(), control.EXIT_REFUSED, cli.EXIT_USAGE}
    commands |= {*status.EXIT_BY_HEALTH.values(), *doctor.EXIT_BY_GRADE.values(), cli.EXIT_INTERRUPTED}
    assert codes_of("a command's code") == commands


def test_every_alert_that_wakes_somebody_has_a_first_look() -> None:
    """The critical ones stand in the table for the night; the others in metrics.md."""
    rules = (DOCS.parent / "etc/prometheus/metamusesd.rules.yml").read_text("utf-8")
    alerts = re.findall(r"- alert: (\w+)(.*?)(?=- alert:|\Z)", rules, re.DOTALL)
    critical = {name for name, rule in alerts if "severity: critical" in rule}
    assert critical and critical == set(re.findall(r"`(Metamusesd\w+)`", PAGE))


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)[^)]*\)", PAGE))))
def test_every_link_leads_somewhere(link: str) -> None:
    """Also from where `make install` puts the page."""
    assert (DOCS / link).is_file()
