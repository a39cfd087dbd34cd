"""Daemons with a vectors process, and an operator who asks it over the cache socket."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from metamusesd.cache.base import Entry, encode_entry, entry_id
from metamusesd.wire import Answer, Count, Found, Frame, FrameReader, Keep, Look, Question, Told, encode
from tests.process.supervisor_rig import PATIENCE_S, Daemon, until

ASKED = "What is the capital of France?"
LIKE = "what is the capital of france"


class WithVectors(Daemon):
    """A real vectors process on toys, and a dispatcher that asks over every pipe that it gets."""

    kids: ClassVar = {
        "dispatcher_entry": "tests.process.kid_asker", "vectors_entry": "tests.process.kid_vectors",
        "worker_entry": "tests.process.kid_worker",
    }  # fmt: skip

    def __init__(self, directory: Path, **overrides: object) -> None:
        super().__init__(directory, **{"cache__semantic": "true", "tiers__fast__workers": 1} | overrides)

    def vectors(self) -> dict[str, Any]:
        """Of /status; empty when there is none."""
        return dict(self.status()["vectors"] or {})

    def served(self) -> WithVectors:
        """Wait until vectors is ready and its first pipe has answered."""
        self.ready()
        until(lambda: self.vectors().get("status") == "ready", "vectors")
        return self

    def linked(self, pipes: int) -> list[int]:
        """Wait until so many pipes have answered; their epochs."""
        until(lambda: len(self.epochs()) >= pipes, "pipes")
        return self.epochs()

    def epochs(self) -> list[int]:
        return list(dict.fromkeys(note["epoch"] for note in self.notes("dispatcher", "answer")))

    @contextlib.contextmanager
    def operator(self) -> Iterator[Operator]:
        with socket.socket(socket.AF_UNIX) as plug:
            plug.settimeout(PATIENCE_S)
            plug.connect(str(self.directory / "run/cache.sock"))
            yield Operator(plug)


class Real(WithVectors):
    """The same with the real embedder and store."""

    kids: ClassVar = WithVectors.kids | {"vectors_entry": "metamusesd.vectors.boot"}


class Operator:
    """Asks over the cache socket."""

    def __init__(self, plug: socket.socket) -> None:
        self.plug, self.reader = plug, FrameReader(0)

    def ask(self, *questions: Question) -> list[Answer]:
        """As many answers as have a handle."""
        self.plug.sendall(encode(Frame.ASK, 0, list(questions)))
        answers: list[Answer] = []
        while len(answers) < sum(hasattr(question, "handle") for question in questions):
            data = self.plug.recv(65536)
            assert data, "it hung up"
            for _, some in self.reader.feed(data):
                answers += some
        return answers

    def count(self) -> dict[str, Any]:
        (told,) = self.ask(Count(1))
        assert isinstance(told, Told)
        return dict(json.loads(told.data))

    def look(self, text: str) -> Found:
        (found,) = self.ask(Look(1, text, ["p"]))
        assert isinstance(found, Found)
        return found

    def keep(self, text: str, answer: bytes = b"Paris") -> None:
        """Keep it and wait until it is there."""
        before = self.count()["counted"]["kept"]
        entry = Entry(id=entry_id("p", text), partition="p", query=text, answer=answer)
        self.ask(Keep(encode_entry(entry)))
        until(lambda: self.count()["counted"]["kept"] > before, "kept")

    def hung_up(self) -> bool:
        """Wait for EOF."""
        with contextlib.suppress(ConnectionResetError):
            return self.plug.recv(1) == b""
        return True
