"""A new model must show what it can before it takes jobs."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from metamusesd.engines.base import EngineSpec
from metamusesd.engines.choice import make_engine
from metamusesd.errors import CanaryFailed
from metamusesd.wire import Finished, Token
from metamusesd.worker import canary


@dataclass
class Says:
    """An engine that answers every prompt with the same pieces."""

    pieces: list[str]
    error: dict[str, object] | None = None
    left: list[Token | Finished] = field(default_factory=list)

    def prepare(self, task: object) -> object:
        return task

    def admit(self, task: object) -> None:
        self.left = [Token(1, piece, 1, True) for piece in self.pieces]
        self.left.append(Finished(1, "error" if self.error else "stop", error=self.error))

    def busy(self) -> bool:
        return bool(self.left)

    def step(self) -> list[Token | Finished]:
        return [self.left.pop(0)]


def test_a_real_engine_passes() -> None:
    """Echo says what it is asked; the pace is measured, and too slow a one is refused with both figures."""
    engine = make_engine(EngineSpec("echo", "echo"), lambda share: None)
    assert canary.check(engine, {}, 1.0) > 1.0
    assert canary.check(engine, {"one two three": "TWO"}, 1.0) > 1.0
    with pytest.raises(CanaryFailed, match=r"tokens/s; models\.\*\.canary_tokens_s asks for 1e\+12"):
        canary.check(engine, {"one two three": ""}, 1e12)


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        ([], "empty"),
        ([" ", "\n"], "empty"),
        (["!!!!!!"] * 10, "again and again"),
        (["a\N{REPLACEMENT CHARACTER}"], "not text"),
        (["a sensible answer"], "does not contain 'four'"),
    ],
)
def test_a_broken_model_is_refused(pieces: list[str], problem: str) -> None:
    """With its answer, or what is wrong with it."""
    with pytest.raises(CanaryFailed, match=problem):
        canary.check(Says(pieces), {"What is 2+2?": "four"}, 0.0)  # type: ignore[arg-type]


def test_an_engine_that_fails_says_why() -> None:
    """Its error is the canary's."""
    with pytest.raises(CanaryFailed, match="decode failed"):
        canary.check(Says([], {"message": "decode failed"}), {}, 0.0)  # type: ignore[arg-type]
