"""Stage 6 · dispatcher · how long answers get: learnt by tier and muse from those that were finished. Pure.

A mean that forgets (exponentially, after some 50 answers), for each tier and for each muse in it; a muse's own counts
the more, the more answers it stands on (shrinkage towards the tier's: James and Stein 1961).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

GUESSED_TOKENS = 256.0
MEMORY = 50  # answers
SHRINK = 5.0  # so many answers weigh as much as the tier's mean
MOST_MUSES = 10_000


@dataclass(slots=True)
class _Mean:
    """Of the last answers."""

    tokens: float = 0.0
    count: int = 0

    def learn(self, tokens: float) -> None:
        self.count += 1
        self.tokens += (tokens - self.tokens) / min(self.count, MEMORY)


class Lengths:
    """What one dispatcher has learnt."""

    def __init__(self) -> None:
        self._tiers: dict[str, _Mean] = {}
        self._muses: OrderedDict[tuple[str, str], _Mean] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Lengths tiers={self._tiers} muses={len(self._muses)}>"

    def learn(self, tier: str, muse: str, tokens: int) -> None:
        """An answer is complete, with so many tokens."""
        self._tiers.setdefault(tier, _Mean()).learn(tokens)
        mean = self._muses.setdefault((tier, muse), _Mean())
        mean.learn(tokens)
        self._muses.move_to_end((tier, muse))
        if len(self._muses) > MOST_MUSES:
            self._muses.popitem(last=False)

    def expect(self, tier: str, muse: str, max_tokens: int | None) -> float:
        """Tokens of the next answer there, at least one, at most `max_tokens`."""
        whole = self._tiers.get(tier)
        expected = whole.tokens if whole is not None else GUESSED_TOKENS
        if (own := self._muses.get((tier, muse))) is not None:
            weight = min(own.count, MEMORY)
            expected = (own.tokens * weight + expected * SHRINK) / (weight + SHRINK)
        return max(1.0, min(expected, max_tokens) if max_tokens else expected)
