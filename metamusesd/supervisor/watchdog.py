"""Supervisor · is a child hung, or only slow? Pure: what the board shows in, verdict out.

A child is watched by progress, never by being alive. It is hung when it owes something and nothing that counts its
progress has changed for longer than `hang_s` and longer than MANY_STEPS of its own steps explain. Time in which the
supervisor itself did not look (it was stopped, or the machine slept) is not held against a child.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

MANY_STEPS = 20
LOOKED_AWAY_S = 2.0  # a longer pause between two looks does not count as the child's idleness
PROGRESS = (
    "epoch",
    "steps",
    "last_step_ns",
    "frames_received",
    "generated_tokens",
    "prompt_tokens",
    "jobs",
    "slots_used",
)
STEP_NS_MOST = 60_000_000_000  # a larger step time on the board is not believed


@dataclass(frozen=True, slots=True)
class Watch:
    """What was last seen of one child, since when it has not changed, and when we last looked."""

    seen: tuple[int, ...] = ()
    since_s: float = 0.0
    looked_s: float = 0.0
    owes: bool = False


def look(watch: Watch, seen: tuple[int, ...], owes: bool, now_s: float) -> Watch:
    """The next state of a watch."""
    if not owes or not watch.owes or seen != watch.seen:
        return Watch(seen, now_s, now_s, owes)
    away_s = now_s - watch.looked_s
    since_s = watch.since_s + away_s if away_s > LOOKED_AWAY_S else watch.since_s
    return replace(watch, since_s=since_s, looked_s=now_s)


def idle_s(watch: Watch) -> float:
    """How long it has owed something without any progress, as far as we looked."""
    return watch.looked_s - watch.since_s if watch.owes else 0.0


def worker_debt(fields: Mapping[str, int] | None, frames_sent: int) -> tuple[tuple[int, ...], bool]:
    """(what counts its progress, does it owe any). With work: steps. Without: its heartbeat, once it had one.

    A row that cannot be read belongs to a writer that stands still in the middle of a write: it owes.
    """
    if fields is None:
        return (), True
    if fields["slots_used"] or fields["preempted"] or frames_sent > fields["frames_received"]:
        return tuple(fields[name] for name in PROGRESS), True
    return (fields["beat_ns"],), fields["beat_ns"] > 0


def worker_limit_s(fields: Mapping[str, int] | None, hang_s: float) -> float:
    """The patience with one worker: slow models get more."""
    step_ns = 0 if fields is None else min(fields["step_ns"], STEP_NS_MOST)
    return max(hang_s, MANY_STEPS * step_ns / 1e9)
