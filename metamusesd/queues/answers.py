"""Stages 4, 10 · dispatcher, clients · the exact cache, which lives beside the queue: what is kept and asked.

An answer is kept by the call that settles its job: there is never a result without its answer, nor an answer of a job
that somebody else has settled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """Bounds of the answers that are kept for equal questions."""

    ttl_ms: int = 86_400_000
    most: int = 100_000
    most_bytes: int = 256 << 20
    repeat_ms: int = 300_000  # a user who asks the same again within so long wants another answer; 0: never


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer for whoever asks under `key`, a digest of the question and all its walls.

    `labels` for `forget`: JSON with the texts tenant, muse, model and tags (separated by spaces)."""

    key: str
    value: bytes
    labels: bytes = b"{}"


@dataclass(frozen=True, slots=True)
class Recall:
    """A job's question to the exact cache. `asked`: digest of its user and the question; empty: nobody known."""

    id: str
    keys: tuple[str, ...]  # the best first
    asked: str = ""


@dataclass(frozen=True, slots=True)
class Recalled:
    """`repeated`: the same user asked the same a moment ago, and wants another answer. No key: nothing was found."""

    key: str = ""
    value: bytes = b""
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Complaint:
    """A hit of the semantic cache that a producer reported as wrong."""

    entry: str
    score: float


class Answers(Protocol):
    """This part of the door; base.Queue has it."""

    async def complain(self, id: str) -> str:
        """The answer that this job got from a cache was wrong. `noted`, `not_cached` or `gone`."""

    async def forget(self, *, tenant: str = "", muse: str = "", model: str = "", tag: str = "") -> int:
        """Drop the answers that are kept for equal questions and have all these labels; how many there were."""

    async def kept(self) -> tuple[int, int]:
        """Answers kept for equal questions, and their bytes. Some may have expired a moment ago."""

    async def recall(self, asks: Sequence[Recall]) -> list[Recalled]:
        """Look for answers to equal questions."""

    async def complaints(self, most: int = 100) -> list[Complaint]:
        """Take the complaints about semantic hits that nobody has taken yet."""
