"""Supervisor · is a child hung, or only slow? Pure: what the board and the kernel show in, verdict out.

A child is watched by progress, never by being alive. What counts as progress, and how long it may take, depend on what
the child does:

    loading    its heartbeat, for at most boot_s        preparing, idle    its heartbeat
    prefill, decode   its steps                         taking jobs        it reads the frames that were sent to it,
                                                                           and makes the first step with them
    serving           its heartbeat (the dispatcher, and vectors that owes nothing)
    answering         the oldest question of vectors is another one than before
    tending           the end of the store's maintenance, which may hold the interpreter: BUSY times hang_s, and as long
                      as it uses the CPU TENDING_S

Patience is learnt from the child itself: MANY of its usual steps (MANY_BEATS of its heartbeats), or FEW of its slowest
ones of late, and never less than `least_s`. While nothing is learnt it is `hang_s`, and only steps that are themselves
so long make it longer than that. A child that gets CPU time, wants it or waits for the disk is slow, not hung, up to
BUSY times that; a child that a signal has stopped has `least_s`. Time in which the supervisor itself did not look (it
was starved or stopped, or the machine slept) is not held against anybody.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from metamusesd.board import WorkerState

MANY, FEW, MANY_BEATS = 20, 4, 8
FEWEST_BEATS = 3  # however short hang_s is: a heartbeat may be late
IDLE_BEAT_S = 1.0  # of a worker that has nothing to do (worker.IDLE_S)
BUSY = 4
TENDING_S = 1800.0
LEARNT_STEPS, LEARNT_BEATS = 8, 3
FOLLOW = 0.2  # how fast the usual step follows
FADE = 0.998  # how fast the slowest one is forgotten, a look with progress
LOOKED_AWAY_S = 1.0  # a longer pause between two looks counts as GLANCE_S of the child's idleness
GLANCE_S = 0.25
BUSY_SHARE = 0.1  # of its idle time on a CPU: it computes
STEP_S_MOST = 60.0  # a larger step time on the board is not believed
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


class Doing(enum.Enum):
    """What a child is at, as far as its patience goes."""

    NOTHING = "nothing"  # it owes nothing yet
    LOADING = "loading"
    PREPARING = "preparing"
    PREFILL = "prefill"
    DECODE = "decode"
    TAKING = "taking jobs"
    IDLE = "idle"
    UNREADABLE = "unreadable"  # its writer stands still in the middle of a write
    SERVING = "serving"
    ANSWERING = "answering"
    TENDING = "tending its store"


STEPPING = (Doing.PREFILL, Doing.DECODE)
BEATING = (Doing.LOADING, Doing.PREPARING, Doing.IDLE, Doing.SERVING)


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look at a child shows. `steps` and `at_ns`: how many steps or beats there were, and the last one's time;
    `step_s`: how long it says a step takes; `cpu_s`: what it used since its start; `wants_cpu`: it runs, could run, or
    waits for the disk; `stopped`: by a signal."""

    doing: Doing
    progress: tuple[int, ...] = ()
    steps: int = 0
    at_ns: int = 0
    step_s: float = 0.0
    cpu_s: float = 0.0
    wants_cpu: bool = False
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a step, or a beat, usually takes, and the slowest of late; from so many of them."""

    usual_s: float = 0.0
    slowest_s: float = 0.0
    seen: int = 0


@dataclass(frozen=True, slots=True)
class Watch:
    """What is known of one child: the last look, for how long it has owed without progress, its paces by phase."""

    last: Sight = Sight(Doing.NOTHING)
    looked_s: float = 0.0
    idle_s: float = 0.0
    cpu_s: float = 0.0  # when its idleness began
    looks: int = 0  # since then
    wanted: int = 0  # looks at which it wanted the CPU
    paces: Mapping[Doing, Pace] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Patience:
    """What the configuration allows: while nothing is learnt, and at least."""

    hang_s: float
    least_s: float


def look(watch: Watch, sight: Sight, now_s: float) -> Watch:
    """The next state of a watch."""
    paces = _learn(watch, sight)
    if sight.doing is Doing.NOTHING or watch.last.doing is Doing.NOTHING or _moved(watch.last, sight):
        return Watch(sight, now_s, cpu_s=sight.cpu_s, paces=paces)
    away_s = now_s - watch.looked_s
    return replace(
        watch,
        last=sight,
        looked_s=now_s,
        idle_s=watch.idle_s + (away_s if away_s <= LOOKED_AWAY_S else GLANCE_S),
        looks=watch.looks + 1,
        wanted=watch.wanted + sight.wants_cpu,
        paces=paces,
    )


def limit_s(watch: Watch, patience: Patience) -> float:
    """How long this child may go without progress in what it does now."""
    if watch.last.stopped:
        return min(patience.least_s, patience.hang_s)
    quiet_s = _quiet_s(watch, patience)
    if not is_busy(watch):
        return quiet_s
    if watch.last.doing is Doing.TENDING:
        return max(TENDING_S, quiet_s)
    return max(patience.hang_s, quiet_s if watch.last.doing is Doing.SERVING else BUSY * quiet_s)


def verdict(watch: Watch, patience: Patience) -> str:
    """Why this child is hung, or nothing."""
    if watch.last.doing is Doing.NOTHING or watch.idle_s <= (limit := limit_s(watch, patience)):
        return ""
    burning = ", though it uses the CPU" if is_busy(watch) else ""
    return f"no progress for {watch.idle_s:.1f} s in {watch.last.doing.value}{burning} (limit {limit:.1f} s)"


def is_busy(watch: Watch) -> bool:
    """Since its last progress it used a good part of a CPU, or would have if it had got one."""
    share = (watch.last.cpu_s - watch.cpu_s) / watch.idle_s if watch.idle_s else 0.0
    return share > BUSY_SHARE or watch.wanted * 2 > watch.looks


def worker_sight(fields: Mapping[str, int] | None, frames_owed: int) -> Sight:
    """A row of the board as a sight, without its CPU. `frames_owed`: sent in the worker's present epoch."""
    if fields is None:
        return Sight(Doing.UNREADABLE)
    doing = _doing(fields, frames_owed)
    if doing in BEATING:
        return Sight(doing, (fields["beat_ns"],), at_ns=fields["beat_ns"])
    progress = tuple(fields[name] for name in PROGRESS)
    step_s = min(fields["step_ns"] / 1e9, STEP_S_MOST)
    return Sight(doing, progress, fields["steps"], fields["last_step_ns"], step_s)


def dispatcher_sight(beat_ns: int) -> Sight:
    """The dispatcher owes a heartbeat from the start."""
    return Sight(Doing.SERVING, (beat_ns,), at_ns=beat_ns)


def vectors_sight(fields: Mapping[str, int] | None) -> Sight:
    """The block of vectors as a sight. While its store is tended it may be unable to say anything."""
    if fields is None:
        return Sight(Doing.UNREADABLE)
    for doing, since_ns in ((Doing.TENDING, fields["tending_ns"]), (Doing.ANSWERING, fields["oldest_ns"])):
        if since_ns:
            return Sight(doing, (since_ns,))
    beat_ns = fields["beat_ns"]
    return Sight(Doing.SERVING, (beat_ns,), at_ns=beat_ns) if beat_ns else Sight(Doing.NOTHING)


def _doing(fields: Mapping[str, int], frames_owed: int) -> Doing:
    if fields["state"] == WorkerState.LOADING:
        return Doing.LOADING if fields["beat_ns"] else Doing.NOTHING
    if fields["state"] == WorkerState.WAITING:
        return Doing.IDLE  # the dispatcher does not read; that is not this child's fault
    if fields["slots_used"] or fields["preempted"]:
        return Doing.PREFILL if fields["state"] == WorkerState.PREFILL else Doing.DECODE
    if fields["state"] == WorkerState.TAKING or frames_owed > fields["frames_received"]:
        return Doing.TAKING
    if not fields["beat_ns"]:
        return Doing.NOTHING
    return Doing.PREPARING if fields["state"] in (WorkerState.PREFILL, WorkerState.DECODE) else Doing.IDLE


def _moved(before: Sight, now: Sight) -> bool:
    """Something that counts has changed. A stopped child that is sent work has not moved: only its debt changed."""
    if before.doing in BEATING and now.doing is Doing.TAKING:
        return False
    if now.doing is Doing.UNREADABLE and before.doing is not Doing.UNREADABLE:
        return True
    return (now.doing in BEATING) != (before.doing in BEATING) or now.progress != before.progress


def _quiet_s(watch: Watch, patience: Patience) -> float:
    """The limit for a child that uses no CPU. What is unread is owed a heartbeat and a step."""
    doing, floor_s = watch.last.doing, min(patience.least_s, patience.hang_s)
    if doing is Doing.TENDING:
        return BUSY * patience.hang_s
    if doing is Doing.TAKING:
        paces = [watch.paces[each] for each in STEPPING if each in watch.paces]
        explained_s = max((_explained_s(pace, MANY, LEARNT_STEPS) for pace in paces), default=0.0)
        return (
            max(floor_s, explained_s, MANY_BEATS * watch.paces.get(Doing.IDLE, Pace()).usual_s)
            if explained_s
            else (patience.hang_s)
        )
    pace = watch.paces.get(Doing.IDLE if doing is Doing.PREPARING else doing, Pace())
    if doing in BEATING:
        explained_s = _explained_s(pace, MANY_BEATS, LEARNT_BEATS)
        most_s = max(patience.hang_s, FEWEST_BEATS * (pace.usual_s or (IDLE_BEAT_S if doing is Doing.IDLE else 0.0)))
        return min(most_s, max(floor_s, explained_s)) if explained_s else most_s
    explained_s = _explained_s(pace, MANY, LEARNT_STEPS)
    return max(floor_s, explained_s) if explained_s else max(patience.hang_s, MANY * watch.last.step_s)


def _explained_s(pace: Pace, many: int, learnt: int) -> float:
    """What this pace explains; 0: it is not learnt yet."""
    return max(many * pace.usual_s, FEW * pace.slowest_s) if pace.seen >= learnt else 0.0


def _learn(watch: Watch, now: Sight) -> Mapping[Doing, Pace]:
    """The paces after this look. A stretch between two phases counts for both."""
    before = watch.last
    kinds = {Doing.PREPARING: Doing.IDLE}
    was, phase = kinds.get(before.doing, before.doing), kinds.get(now.doing, now.doing)
    same = phase is was or (phase in STEPPING and was in STEPPING)
    took_s = (now.at_ns - before.at_ns) / 1e9
    if not same or not before.at_ns or took_s <= 0 or now.doing in (Doing.LOADING, Doing.TAKING):
        return watch.paces
    steps = max(1, now.steps - before.steps)
    sample_s = min(max(took_s / steps, now.step_s), STEP_S_MOST)
    return {**watch.paces, **{each: _follow(watch.paces.get(each), sample_s, steps) for each in (was, phase)}}


def _follow(pace: Pace | None, sample_s: float, steps: int) -> Pace:
    if pace is None:
        return Pace(sample_s, sample_s, steps)
    usual_s = pace.usual_s + FOLLOW * (sample_s - pace.usual_s)
    return Pace(usual_s, max(sample_s, pace.slowest_s * FADE), pace.seen + steps)
