"""Whether there is a semantic cache, and what its absence is called."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from metamusesd import config
from metamusesd.board import Board
from metamusesd.commands.advice import advise
from metamusesd.commands.status import frame
from metamusesd.config import Config
from metamusesd.config.options import EMBEDDER_FILES
from metamusesd.supervisor import semantic
from metamusesd.supervisor.report import Reporter
from metamusesd.supervisor.slot import Slot
from metamusesd.supervisor.spec import ChildSpec, Entries, Kind, child_specs


def loaded(tmp_path: Path, **overrides: str) -> Config:
    given = {"daemon.models_dir": str(tmp_path)} | {key.replace("__", "."): value for key, value in overrides.items()}
    return config.load(environ={}, overrides=given)


@pytest.fixture
def embedder(tmp_path) -> Path:
    folder = tmp_path / "all-MiniLM-L6-v2"
    folder.mkdir()
    for name in EMBEDDER_FILES:
        (folder / name).touch()
    return folder


@pytest.fixture
def libraries(monkeypatch) -> set[str]:
    """Those that are installed."""
    there = {"fastembed", "qdrant_edge", "qdrant_client"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in there else None)
    return there


@pytest.fixture
def vectors() -> Slot:
    slot = Slot(ChildSpec("vectors", Kind.VECTORS))
    slot.started(0, None)  # no process: nothing is ever signalled
    return slot


def test_nothing_is_missing_when_all_is_there(tmp_path, embedder, libraries):
    """Files and libraries."""
    assert semantic.what_is_missing(loaded(tmp_path)) == ""


def test_a_missing_file_is_named_with_its_remedy(tmp_path, embedder, libraries):
    """One file of the embedder is enough to be without it."""
    (embedder / "tokenizer.json").unlink()
    missing = semantic.what_is_missing(loaded(tmp_path))
    assert "has no tokenizer.json; run `metamusesd models fetch minilm`" in missing


@pytest.mark.parametrize(("url", "library"), [("embedded", "qdrant_edge"), ("http://q:6333", "qdrant_client")])
def test_a_missing_library_is_named_by_the_store_that_is_wanted(tmp_path, embedder, libraries, url, library):
    """Edge for the embedded store, the client for a server; the other one is not asked for."""
    wanted = loaded(tmp_path, cache__qdrant_url=url)
    libraries.clear()
    libraries.update({"fastembed", library})
    assert semantic.what_is_missing(wanted) == ""
    libraries.remove(library)
    assert "pip install 'metamusesd[cache]'" in semantic.what_is_missing(wanted)


@pytest.mark.parametrize("option", ["cache__enabled", "cache__semantic"])
def test_what_is_not_wanted_is_not_missed(tmp_path, option):
    """Switched off: nothing is looked for, and nothing is said."""
    off = loaded(tmp_path, **{option: "false"})
    assert not semantic.is_wanted(off)
    assert semantic.what_is_missing(off) == ""
    assert semantic.limitation(None, "") == ""


def test_what_is_off_is_said_with_the_reason(vectors):
    """Not started, not ready, in trouble; nothing when it serves."""
    assert semantic.limitation(None, "no embedder") == "semantic cache off: no embedder"
    assert semantic.limitation(vectors, "") == "semantic cache off: vectors is starting"
    vectors.ready()
    assert semantic.limitation(vectors, "") == ""
    vectors.trouble = "the server is away"
    assert semantic.limitation(vectors, "") == "semantic cache off: the server is away"
    vectors.last_error = {"message": "broken"}
    vectors.move("given up")
    assert semantic.limitation(vectors, "") == "semantic cache off: vectors is failed: broken"


def test_only_the_first_process_may_keep_the_daemon_from_starting(vectors):
    """Exit 78 at the first start is a refusal; later, or after another exit, it is a cache less."""
    vectors.buried(70 << 8)
    assert not semantic.refuses_to_start(vectors)
    vectors.buried(78 << 8)
    assert semantic.refuses_to_start(vectors)
    vectors.ever_ready = True
    assert not semantic.refuses_to_start(vectors)
    vectors.ever_ready, vectors.generation = False, 2
    assert not semantic.refuses_to_start(vectors)


def test_vectors_starts_right_after_the_dispatcher():
    """If there is one."""
    specs = child_specs([], Entries(), redis=True, vectors=True)
    assert [(spec.name, spec.entry) for spec in specs] == [
        ("redis", ""), ("dispatcher", "metamusesd.dispatcher.boot"), ("vectors", "metamusesd.vectors.boot")
    ]  # fmt: skip
    assert [spec.name for spec in child_specs([], Entries(), redis=False, vectors=False)] == ["dispatcher"]


def test_status_shows_vectors_on_a_line_of_its_own(tmp_path, vectors):
    """Its figures come from the board; what is off is among the complaints."""
    board = Board(1)
    board.vectors.write(beat_ns=1, hits=3, misses=4, entries=5, text_ns=5_200_000, tending_ns=1)
    reporter = Reporter(loaded(tmp_path), board, [vectors], 0.0)
    vectors.ready()
    shown = "\n".join(part for part in frame(reporter.status()) if isinstance(part, str))
    assert "vectors [green]ready[/] tending its store" in shown
    assert "5 answers · 3 hits, 4 misses, 0 failures · 5.2 ms a text" in shown
    vectors.trouble = "the server is away"
    told = [complaint.text for complaint in advise(reporter.status(), loaded(tmp_path))]
    assert any("the server is away" in text for text in told)
