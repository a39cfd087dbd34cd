"""`metamusesd route`: prompts through the router, without a daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metamusesd import cli


def test_one_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    """Domain, level, tier, and why."""
    assert cli.main(["route", "Write", "a", "function", "to", "sort", "an", "array"]) == 0
    shown = capsys.readouterr().out
    assert "domain      code" in shown and "tier        fast" in shown and "code is not enabled" in shown


def test_as_json_with_every_tier(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole decision on one line."""
    assert cli.main(["route", "--json", "--all-tiers", "Solve x + 2 = 5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["domain"], found["tier"], found["tiers"]) == ("math", "math", ["math", "heavy"])


def test_many_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """{id, query} in, {id, domain, level, score, tier, reason} out, in order; a missing id is the line's number."""
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text('\ufeff{"id": "a", "query": "hello\u2028"}\n\n{"query": "Prove that 2 + 2 = 4"}\n', "utf-8")
    assert cli.main(["route", "--jsonl", str(asked), "--out", str(out)]) == 0
    assert "2 prompts routed" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", 3]
    assert {"id", "domain", "level", "score", "tier", "reason"} <= rows[0].keys()
    assert [row["domain"] for row in rows] == ["general", "math"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 1"),
        ('{"id": 1}', "no query"),
        ('{"query": 3}', "no query"),
        ("[]", "no query"),
        ("[" * 100_000, "line 1"),
        ('{"query": "a\\u0000b"}', "line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Which line, and what is wrong; nothing is written."""
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text(line + "\n")
    assert cli.main(["route", "--jsonl", str(asked), "--out", str(out)]) == 65
    shown = capsys.readouterr().err
    assert says in shown and not out.exists()


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name."""
    assert cli.main(["route", "--jsonl", str(tmp_path / "none.jsonl")]) == 65
    assert "none.jsonl" in capsys.readouterr().err
