"""Stages 7 to 10 · dispatcher · one claimed job while this dispatcher holds it, and how such a run can end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from metamusesd.dispatcher.scheduler import estimate_tokens
from metamusesd.queues.base import Claim, Verdict
from metamusesd.route import Placed
from metamusesd.wire import Embedded, Finished, Keep, Refused, Token, Withdraw

if TYPE_CHECKING:
    from metamusesd.dispatcher.links import Link


@dataclass(frozen=True, slots=True)
class Lost:
    """Its worker is gone. `crashed`: it died, and this job was one of those it died under.

    `killed`: somebody outside ended it, the job is innocent. `evidence`: the supervisor's words, see control.py.
    """

    crashed: bool
    reason: str = "worker_died"
    killed: bool = False
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Back:
    """It is given back before its end: no room, or a drain."""

    reason: str
    delay_ms: int = 0


End = Finished | Refused | Lost | Back | Verdict | Embedded


class Run:
    """What is known of one attempt. One writer: the dispatcher's loop."""

    __slots__ = (
        "alone", "asked_ns", "chars", "claim", "claimed_ns", "end", "first_ns", "flawed", "frame", "handle",
        "idle_refusal", "link", "logprobs", "muse", "neighbours", "news", "over", "parts", "placed", "prompt_estimate",
        "route_ms", "token_ns", "tokens",
    )  # fmt: skip

    def __init__(self, claim: Claim, loop: asyncio.AbstractEventLoop) -> None:
        self.claim = claim
        self.claimed_ns = self.asked_ns = time.monotonic_ns()
        self.first_ns = self.token_ns = 0
        self.end: asyncio.Future[End] = loop.create_future()
        self.link: Link | None = None
        self.handle = 0
        self.frame = 0  # the how manieth frame on its pipe it left with; 0: it has not left
        self.parts: list[str] = []
        self.chars = self.tokens = 0
        self.route_ms = 0.0
        self.prompt_estimate = estimate_tokens(claim)
        self.logprobs: list[object] | None = None
        self.alone = False  # nobody else was in its worker since it was sent there
        self.neighbours = 0  # how many were there with it when the worker died
        self.idle_refusal = False  # refused by a worker that had nothing else: waiting will not help
        self.news: Keep | Withdraw | None = None  # for the semantic cache, once its end is written
        self.muse = ""
        self.flawed = False  # its answer is complete, and something is wrong with it: see flaws.py
        self.placed: Placed | None = None  # which worker got it, and why
        self.over = False  # its end is written; nothing more is to be said about it

    def __repr__(self) -> str:
        return f"<Run {self.claim.id} attempt={self.claim.attempt} on={self.link} tokens={self.tokens}>"

    def finish(self, end: End) -> None:
        """The first end counts."""
        if not self.end.done():
            self.end.set_result(end)

    def take(self, token: Token) -> int:
        """Add a step's text; returns its offset in characters."""
        offset = self.chars
        if token.text:
            self.parts.append(token.text)
            self.chars += len(token.text)
        self.tokens += token.tokens
        if token.logprobs is not None:
            self.logprobs = [*(self.logprobs or ()), *token.logprobs]
        return offset

    @property
    def tier(self) -> str:
        """That serves it; before it was sent, the one that it was claimed from."""
        return self.link.tier if self.link is not None else self.claim.queue

    @property
    def content(self) -> str:
        """All the text so far."""
        return "".join(self.parts)

    @property
    def held_s(self) -> float:
        """Since its claim."""
        return (time.monotonic_ns() - self.claimed_ns) / 1e9

    @property
    def queued_ms(self) -> int:
        """From submit to the claim, on the server's clock."""
        return max(0, self.claim.claimed_ms - self.claim.submitted_ms)

    @property
    def overdue(self) -> bool:
        """Its deadline has passed: it is not worth sending."""
        return bool(self.claim.deadline_ms) and self._left_ms() <= 0

    def deadline_in_ms(self) -> int:
        """For the worker: from now; 0: none; never under 1."""
        return max(1, self._left_ms()) if self.claim.deadline_ms else 0

    def _left_ms(self) -> int:
        passed_ms = (time.monotonic_ns() - self.claimed_ns) // 1_000_000
        return self.claim.deadline_ms - self.claim.claimed_ms - passed_ms
