"""`metamusesd cache` on a whole daemon: facts, explain, a report of a wrong hit, purge; and evaluate without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metamusesd.config import load
from tests.process.supervisor_rig import until
from tests.process.test_vectors import MODELS, needs_parts
from tests.process.test_vectors_whole import Whole, linked

pytestmark = [pytest.mark.timeout(120), needs_parts]


def run(*words: str, directory: Path | None = None, code: int = 0) -> str:
    """Standard output of a command that must end with this code."""
    command = [sys.executable, "-m", "metamusesd", *words, "--set", f"daemon.models_dir={MODELS}"]
    if directory is not None:
        command += ["--set", f"daemon.state_dir={directory}", "--set", f"daemon.runtime_dir={directory}/run"]
        command += ["--set", "models.smollm2.engine=echo"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("METAMUSESD_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def asked(directory: Path, query: str, *more: str) -> dict[str, Any]:
    return json.loads(run("submit", "--json", query, *more, directory=directory))


def test_an_operators_morning(tmp_path: Path) -> None:
    """A miss, hits of both kinds, a refused twin, an explanation, a complaint, a purge, as the commands say it."""
    directory = tmp_path / "d"
    with Whole(directory, daemon__models_dir=MODELS, redis__url="embedded") as daemon:
        daemon.served()
        until(lambda: linked(daemon) == 1)
        first = asked(directory, "Why is exercise good for the heart?")
        assert (first["from_cache"], first["cache"]["kind"]) == (False, "miss")
        until(lambda: daemon.vectors()["entries"] == 1)
        exact = asked(directory, "Why is exercise good for the heart?")
        near = asked(directory, "Please, why is exercise good for the heart")
        twin = asked(directory, "Why is exercise bad for the heart?")
        assert [result["cache"]["kind"] for result in (exact, near, twin)] == ["exact", "semantic", "miss"]
        assert "antonym" in twin["cache"]["reason"] and near["content"] == first["content"]
        assert exact["cache"]["entry"] and near["cache"]["score"] > 0.85 and near["cache"]["age_s"] >= 0

        told = json.loads(
            run("cache", "explain", "--json", "Why is exercise bad for the heart, please?", directory=directory)
        )
        assert told["may"] == ["read", "write", "semantic", "share"] and told["exact"] is None
        verdicts = {row["query"]: (row["verdict"], row["admitted"]) for row in told["neighbours"]}
        assert verdicts["Why is exercise good for the heart?"] == ("different", False)
        assert verdicts["Why is exercise bad for the heart?"][1]
        assert "time" in run("cache", "explain", "What is the weather today?", directory=directory)

        said = run("cache", "wrong", near["request_id"], first["request_id"], "nobody", directory=directory, code=66)
        assert said.splitlines() == [
            f"{near['request_id']}  noted", f"{first['request_id']}  not cached", "nobody  gone"
        ]  # fmt: skip
        facts = json.loads(run("cache", "stats", "--json", directory=directory))
        until(
            lambda: json.loads(run("cache", "stats", "--json", directory=directory))["semantic"]["counted"][
                "complaints"
            ]
        )
        assert facts["exact"]["answers"] == 2 and facts["semantic"]["store"]["entries"] == 2
        assert "semantic cache   2 answers" in run("cache", "stats", directory=directory)
        again = asked(directory, "Please, why is exercise good for the heart")
        assert again["cache"]["kind"] == "miss"  # its bar is higher now

        assert "nothing says which" in run("cache", "purge", directory=directory, code=65)
        assert "0 answers forgotten" in run("cache", "purge", "--tenant", "nobody", directory=directory)
        run("cache", "purge", "--all", directory=directory)
        assert asked(directory, "Why is exercise good for the heart?")["cache"]["kind"] == "miss"


def test_evaluate_on_anybodys_questions(tmp_path: Path) -> None:
    """Predictions in the documented form, the same ones twice, rates by kind; a bad line is named."""
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "out.jsonl"
    rows = [
        {
            "a": "Why is exercise good for the heart?",
            "b": "why is exercise good for the heart",
            "same": True,
            "kind": "k",
        },
        {
            "id": "twin",
            "a": "Why is exercise good for the heart?",
            "b": "Why is exercise bad for the heart?",
            "same": False,
        },
        {"a": "What is the weather today?", "b": "What is the weather today?", "same": True, "kind": "k"},
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = run("cache", "evaluate", "--protocol", "paraphrase", str(pairs), "--out", str(out))
    predictions = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(each["id"], each["hit"]) for each in predictions] == [(1, True), ("twin", False), (3, False)]
    assert "antonym" in predictions[1]["reason"] and "time" in predictions[2]["reason"]
    assert [line.split()[:4] for line in shown.splitlines() if line.startswith(("k", "all"))][1:] == [
        ["k", "2", "1", "0.5000"], ["all", "3", "1", "0.5000"]
    ]  # fmt: skip
    run("cache", "evaluate", "--protocol", "paraphrase", str(pairs), "--out", str(out))
    assert [json.loads(line) for line in out.read_text().splitlines()] == predictions
    stream = tmp_path / "stream.jsonl"
    questions = ["Who was Ada?", "What is 2 + 2?", "who was Ada", "What is 2 + 3?"]
    stream.write_text("".join(json.dumps({"id": n, "q": q}) + "\n" for n, q in enumerate(questions)))
    run("cache", "evaluate", "--protocol", "distinct", str(stream), "--out", str(out))
    assert [json.loads(line)["hit_id"] for line in out.read_text().splitlines()] == [None, None, 0, None]
    stream.write_text('{"q": "fine"}\n{"q": 7}\n')
    assert ":2: has no text 'q'" in run("cache", "evaluate", "--protocol", "stream", str(stream), code=65)


def test_without_a_daemon_the_commands_say_so(tmp_path: Path) -> None:
    """And what to do."""
    assert "daemon" in run("cache", "stats", directory=tmp_path, code=69)
    assert load(environ={}).cache.enabled
