"""Stage 4 · dispatcher · when to stop asking somebody who does not answer, and when to try again. Pure.

closed ──MOST_FAILURES in a row──► open for a while ──► one question is let through ──answered──► closed
                                     ▲                            │ not
                                     └──────── twice as long ─────┘
"""

from __future__ import annotations

MOST_FAILURES = 5
MOMENT_S = 0.1  # what fails together is one failure: a burst that is too much is no sign of a silent process
FIRST_S, LONGEST_S = 0.5, 30.0


class Breaker:
    """Times are seconds of one monotonic clock, given by the caller."""

    def __init__(self) -> None:
        self._failures = 0
        self._pause_s = FIRST_S
        self._until_s = self._counted_s = 0.0
        self._trying = False

    def __repr__(self) -> str:
        return f"<Breaker {'open' if self.is_open else 'closed'}>"

    @property
    def is_open(self) -> bool:
        """Too many questions in a row got no answer."""
        return self._failures >= MOST_FAILURES

    def allows(self, now_s: float) -> bool:
        """Whether to ask now. A yes while it is open is for one question, whose end must be told."""
        if not self.is_open:
            return True
        if self._trying or now_s < self._until_s:
            return False
        self._trying = True
        return True

    def answered(self) -> None:
        """All is well."""
        self._failures, self._pause_s, self._trying = 0, FIRST_S, False

    def failed(self, now_s: float) -> None:
        """No answer in time, or a bad one."""
        if self._failures and now_s - self._counted_s < MOMENT_S and not self._trying:
            return
        self._failures, self._counted_s = self._failures + 1, now_s
        if self.is_open:
            if self._trying:
                self._pause_s = min(self._pause_s * 2, LONGEST_S)
            self._until_s, self._trying = now_s + self._pause_s, False
