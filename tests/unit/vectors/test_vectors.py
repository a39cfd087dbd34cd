"""The vectors process without a process: conversations over a socketpair, answers in the right form, who is welcome."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import pytest

from metamusesd.board import Board
from metamusesd.cache.base import Entry, encode_entry, entry_id
from metamusesd.cache.memory import MemoryStore
from metamusesd.cache.semantic import Semantic
from metamusesd.config import load
from metamusesd.errors import StoreFailed
from metamusesd.log import get_logger
from metamusesd.vectors.furnish import terms_of
from metamusesd.vectors.row import Row
from metamusesd.vectors.talk import FULL_BYTES, Hooks, Talk
from metamusesd.vectors.vectors import Vectors
from metamusesd.wire import Answer, Count, Forget, Found, Frame, FrameReader, Keep, Look, Told, Weigh, encode
from tests.unit.cache.test_semantic import ASKED, FLIGHTS, LIKE, WALL, FailingStore, ToyEmbedder, called, promise

EPOCH = 5


class Stage:
    """A Vectors with one conversation, and its other end."""

    def __init__(self) -> None:
        self.embedder, self.answers = ToyEmbedder(), FailingStore()
        self.semantic = Semantic(self.embedder, self.answers, MemoryStore())
        self.vectors = Vectors(self.semantic, get_logger("vectors"))
        self.over: list[Talk] = []
        self.reader = FrameReader(EPOCH)
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)

    async def open(self) -> None:
        hooks = Hooks(lambda _talk: True, self.vectors.ask, self.over.append)
        self.talk = Talk(EPOCH, hooks, get_logger("vectors"))
        await asyncio.get_running_loop().create_unix_connection(lambda: self.talk, sock=self.theirs)

    async def close(self) -> None:
        self.talk.close()
        self.ours.close()
        await self.vectors.close()
        await self.semantic.close()
        await asyncio.sleep(0)

    async def hear(self) -> bytes:
        async with asyncio.timeout(10):
            return await asyncio.get_running_loop().sock_recv(self.ours, 65536)

    async def ask(self, *questions: object) -> list[Answer]:
        """Send them in one frame; as many answers as have a handle."""
        await asyncio.get_running_loop().sock_sendall(self.ours, encode(Frame.ASK, EPOCH, list(questions)))
        answers: list[Answer] = []
        while len(answers) < sum(hasattr(question, "handle") for question in questions):
            for _, some in self.reader.feed(await self.hear()):
                answers += some
        return answers


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage()
    await stage.open()
    yield stage
    await stage.close()


def told(answer: Answer) -> dict[str, object]:
    assert isinstance(answer, Told)
    return dict(json.loads(answer.data))


async def test_every_question_is_answered_in_its_form(stage):
    """Found for a look, Told for operators' questions, nothing for what has no handle."""
    entry = Entry(id=entry_id(WALL, ASKED), partition=WALL, query=ASKED, answer=b"Paris")
    await stage.ask(Keep(encode_entry(entry)))
    while not stage.semantic.counted["kept"]:
        await asyncio.sleep(0)
    answers = await stage.ask(Look(1, LIKE, [WALL]), Weigh(2, LIKE, [WALL]), Count(3), Look(4, ASKED, ["other"]))
    by_handle = {answer.handle: answer for answer in answers}
    assert isinstance(found := by_handle[1], Found)
    assert (found.verdict, by_handle[4].verdict) == ("hit", "miss")
    assert told(by_handle[2])["fits"] is True
    assert told(by_handle[3])["store"]["entries"] == 1
    assert told((await stage.ask(Forget(5)))[0]) == {"removed": 1}


async def test_a_failure_is_an_answer(stage, monkeypatch):
    """The store's, in words; a mistake of ours, without them; the conversation goes on."""
    stage.answers.failure = "no disk"
    assert told((await stage.ask(Count(1)))[0]) == {"error": StoreFailed("no disk").to_dict()}
    stage.answers.failure = ""
    monkeypatch.setattr("metamusesd.cache.semantic.verify", lambda *_: 1 / 0)
    await stage.ask(Look(1, ASKED, [WALL], FLIGHTS, promise(ASKED, "f")))
    (found,) = await stage.ask(Look(2, LIKE, [WALL], FLIGHTS))
    assert (found.verdict, found.entry) == ("failed", b"")
    assert told((await stage.ask(Count(3)))[0])["trouble"] == ""


@pytest.mark.parametrize("garbage", [b"x" * 100, encode(Frame.ASK, EPOCH + 1, []), encode(Frame.CANCEL, EPOCH, [1])])
async def test_garbage_ends_the_conversation(stage, garbage):
    """No frame, another epoch's, or one that is not for us: hung up, and whoever holds the pipe is told."""
    await asyncio.get_running_loop().sock_sendall(stage.ours, garbage)
    assert await stage.hear() == b""
    assert stage.over == [stage.talk]


async def test_whoever_is_not_welcome_is_hung_up_on_before_he_can_ask(stage):
    """What he has sent already is not even read."""
    asked: list[object] = []
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ours.send(encode(Frame.ASK, 0, [Count(1)]))
    hooks = Hooks(lambda _talk: False, lambda _talk, question: asked.append(question), lambda _talk: None)
    with ours:
        await asyncio.get_running_loop().create_unix_connection(
            lambda: Talk(0, hooks, get_logger("vectors")), sock=theirs
        )
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(ours, 1)
    assert asked == []


async def test_whoever_does_not_read_loses_answers_and_nothing_grows(stage):
    """The buffer of unread answers is bounded."""
    big = Told(1, b"x" * (FULL_BYTES // 4))
    for _ in range(20):
        stage.talk.say(big)
        await asyncio.sleep(0)
    assert stage.talk.transport.get_write_buffer_size() <= 2 * FULL_BYTES


async def test_the_board_shows_who_waits(stage):
    """The oldest question; of a server's store only the embedder is owed an end."""
    board = Board(1)
    row, remote = (Row(board.vectors, stage.semantic, remote=remote) for remote in (False, True))
    stage.embedder.gate.clear()
    look = asyncio.create_task(stage.ask(Look(1, ASKED, [WALL])))
    await called(stage.embedder, 1)
    row.beat()
    assert board.vectors.get("oldest_ns") == stage.semantic.oldest_ns > 0
    stage.semantic.vectorizer._batch.clear()  # as if the store kept it waiting
    remote.beat()
    assert board.vectors.get("oldest_ns") == 0
    row.tending(True)
    assert board.vectors.get("tending_ns") > 0
    row.tending(False)
    assert board.vectors.get("tending_ns") == 0
    look.cancel()
    stage.embedder.gate.set()


def test_the_terms_are_those_of_the_configuration():
    """Hours become milliseconds; the thresholds are handed on."""
    terms = terms_of(load(environ={}, overrides={"cache.ttl_hours": "2", "cache.similarity_threshold": "0.9"}))
    assert (terms.ttl_ms, terms.similarity_threshold, terms.candidate_threshold) == (7_200_000, 0.9, 0.85)
