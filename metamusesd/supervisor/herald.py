"""Supervisor · tells systemd how the family is, once a second.

Its watchdog is fed as long as the dispatcher's heart beats or we are replacing it: neither Redis' absence nor a hung
worker may make systemd kill loaded models.
"""

from __future__ import annotations

import time

from metamusesd.supervisor.report import Reporter
from metamusesd.supervisor.systemd import Notifier

TELL_S = 1.0
EXTEND_S = 15.0


class Herald:
    """`patience_s`: so old may the dispatcher's heartbeat be before we should have replaced it."""

    def __init__(self, notifier: Notifier, reporter: Reporter, patience_s: float) -> None:
        self._notifier, self._reporter, self.patience_s = notifier, reporter, patience_s
        self._told_s = 0.0

    def tell(self, ready: bool, busy: bool, replacing: bool) -> None:
        """Call it at every turn of the loop. `busy`: a start, a reload or an end is under way, which takes its time
        within limits of ours; `replacing`: the dispatcher."""
        now_s = time.monotonic()
        if now_s - self._told_s < TELL_S:
            return
        self._told_s = now_s
        if ready:
            self._notifier.ready()
        if busy:
            self._notifier.extend(EXTEND_S)
        self._notifier.status(self._reporter.summary())
        age_s = self._reporter.beat_age_s()
        if replacing or age_s is None or age_s < self.patience_s + TELL_S:
            self._notifier.feed()
