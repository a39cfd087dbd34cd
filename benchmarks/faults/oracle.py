"""Faults benchmark · bench process · judge the history of every job against what Redis holds. Pure, but for `collect`.

Every accepted job has exactly one terminal state: one terminal event, the last of its stream; the same in its hash and
its result; the same for everybody who waited. Its attempts never interleave: after `restarted` text begins again at
offset 0 and no token of an older attempt follows. What is done says exactly what was expected. How a job may end is
the plan's word. With a Redis that may lose its last moments, what was touched then is indeterminate, not wrong.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from benchmarks.faults.history import History, Life
from benchmarks.faults.plan import ENDS
from benchmarks.faults.raw import PREFIX
from benchmarks.faults.resp import Redis

LATE_MS = 2_000.0  # a job done so long after its deadline is wrong, unless a fault was near
DURABILITY_MS = 2_500.0  # what `everysec` may lose: the last second, and one more when the disk is busy
EQUALS = ("twin", "cancel", "failing", "poison")  # some of these are equal: a follower lifts its leader's class
FORESIGHT_MS = 20_000.0  # a job that waited longer may have aged
HASH_OR_NOTHING = (
    "if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return {} end return redis.call('HMGET', KEYS[1], unpack(ARGV))"
)
FIELDS = ("state", "attempt", "crashes", "ended", "deadline", "score", "submitted", "tiers", "prio", "reason")


@dataclass(slots=True)
class Facts:
    """What Redis holds of one job."""

    hash: dict[str, str] = field(default_factory=dict)
    events: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # (milliseconds, fields)
    result: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise."""

    rule: str
    id: str
    text: str


RULES = ("lost", "one end", "stream", "content", "ending", "readers", "late", "twins", "producer", "order", "family",
         "keys", "live sets", "counters", "processes", "descriptors", "memory", "sockets and segments")  # fmt: skip


async def collect(redis: Redis, id: str) -> Facts:
    """Read one job."""
    key = f"{PREFIX}:job:{id}"
    values, events, raw = await redis.ask_all(
        [
            ("EVAL", HASH_OR_NOTHING, 1, key, *FIELDS),
            ("XRANGE", f"{PREFIX}:events:{id}", "-", "+"),
            ("GET", f"{PREFIX}:result:{id}"),
        ]
    )
    known = {name: value.decode() for name, value in zip(FIELDS, values, strict=False) if value is not None}
    return Facts(known, [(int(at.split(b"-")[0]), _pairs(words)) for at, words in events], _parse(raw))


def judge(life: Life, facts: Facts, history: History) -> list[Violation]:
    """Everything that is wrong with one job."""
    found = [("producer", wrong) for wrong in life.wrongs]
    if life.job.spoil:
        return []  # a foreign hand had it: only what it left behind is looked at, with the keys
    if not facts.hash:
        found += _absent(life)
    elif life.refused and not life.accepted_ms and not life.unsure:
        found.append(("producer", f"was refused with {life.refused}, and is there"))
    else:
        found += _one_end(facts) + _stream(facts) + _readers(life, facts)
        found += _content(life, facts) + _ending(life, facts) + _late(facts, history)
    if life.lost:
        found.append(("lost", f"was gone {life.lost} times after it had been accepted"))
    return [Violation(rule, life.id, text) for rule, text in found]


def indeterminate(life: Life, facts: Facts, history: History, appendfsync: str) -> bool:
    """Whether a Redis that may lose its last moments was killed while this job lived."""
    if appendfsync == "always":
        return False
    fatal = [fault for fault in history.faults if fault.what in ("kill", "power cut")]
    kills = [fault.at_ms for fault in fatal if fault.victim in ("redis", "supervisor")]
    start_ms = life.notes[0][0] if life.notes else life.accepted_ms
    end_ms = max([at for at, _ in life.notes] + [float(facts.hash.get("ended", 0))])
    return any(start_ms <= kill <= end_ms + DURABILITY_MS for kill in kills)


def order(lives: list[tuple[Life, Facts]], history: History) -> tuple[list[Violation], int]:
    """Start order inside a class and tier, among jobs that nothing touched. (violations, pairs that were compared)."""
    lives = [(life, facts) for life, facts in lives if life.job.kind not in EQUALS]
    calm = [(life, facts) for life, facts in lives if _untouched(facts, history)]
    calm.sort(key=lambda pair: (pair[1].hash["tiers"], float(pair[1].hash["score"])))
    found, pairs = [], 0
    for _, group in groupby(calm, key=lambda pair: (pair[1].hash["tiers"], pair[1].hash["prio"])):
        latest, whose = 0, ""
        for life, facts in group:
            started = _started_ms(facts)
            pairs += 1
            if started < latest:
                found.append(
                    Violation("order", life.id, f"started {latest - started} ms before {whose}, which is older")
                )
            if started >= latest:
                latest, whose = started, life.id
    return found, pairs


def _absent(life: Life) -> list[tuple[str, str]]:
    if life.refused and not life.accepted_ms:
        return []
    return [("lost", f"accepted at {life.accepted_ms:.0f}, and there is no such job")] if life.accepted_ms else []


def _one_end(facts: Facts) -> list[tuple[str, str]]:
    state = facts.hash["state"]
    if state not in ENDS:
        return [("one end", f"its state is {state}")]
    ends = [fields["kind"] for _, fields in facts.events if fields["kind"] in ENDS]
    found = []
    if ends != [state]:
        found.append(("one end", f"its state is {state}, its terminal events are {ends}"))
    if facts.result is None or facts.result.get("state") != state:
        found.append(("one end", f"its state is {state}, its result {facts.result and facts.result.get('state')}"))
    return found


def _stream(facts: Facts) -> list[tuple[str, str]]:
    """Walk the events: attempts only grow, offsets have neither gap nor double, nothing follows the end."""
    found: list[tuple[str, str]] = []
    attempt, length, ended = 1, 0, False
    for _, fields in facts.events:
        kind, its = fields["kind"], int(fields.get("attempt", attempt))
        if ended:
            found.append(("stream", f"{kind} after the end"))
        if kind == "restarted":
            if its < attempt:
                found.append(("stream", f"restarted as attempt {its} after attempt {attempt}"))
            attempt, length = its, 0
        elif kind == "token":
            if its != attempt:
                found.append(("stream", f"a token of attempt {its} in attempt {attempt}"))
            if int(fields["offset"]) != length:
                found.append(("stream", f"offset {fields['offset']} after {length} characters of attempt {its}"))
            length = int(fields["offset"]) + len(fields["text"])
        ended = ended or kind in ENDS
    return found


def streamed(facts: Facts) -> str:
    """The text since the last restart."""
    text = ""
    for _, fields in facts.events:
        text = "" if fields["kind"] == "restarted" else text + fields.get("text", "")
    return text


def _content(life: Life, facts: Facts) -> list[tuple[str, str]]:
    if facts.hash["state"] != "done" or facts.result is None:
        return []
    found = []
    if facts.result["content"] != life.job.text:
        found.append(("content", f"its result says {facts.result['content'][:80]!r}, not {life.job.text[:80]!r}"))
    if life.job.stream and streamed(facts) != life.job.text:
        found.append(("content", f"its stream says {streamed(facts)[:80]!r}, not {life.job.text[:80]!r}"))
    return found


def _ending(life: Life, facts: Facts) -> list[tuple[str, str]]:
    """Whether it may end so: by the plan, and by what its cancel was told."""
    job, state = life.job, facts.hash["state"]
    found = []
    if state in ENDS and state not in job.ends:
        code = ((facts.result or {}).get("error") or {}).get("code")
        found.append(("ending", f"a job of kind {job.kind} ended {state} ({code}), {facts.hash.get('reason', '')}"))
    if state == "failed" and job.codes:
        code = ((facts.result or {}).get("error") or {}).get("code")
        if code not in job.codes:
            found.append(("ending", f"failed with {code}, not {' or '.join(sorted(job.codes))}"))
    for answer in life.cancels:
        if answer != state:
            found.append(("ending", f"its cancel was told {answer}, its state is {state}"))
    return found


def _readers(life: Life, facts: Facts) -> list[tuple[str, str]]:
    """Everybody saw the same end."""
    state, content = facts.hash["state"], (facts.result or {}).get("content", "")
    found = []
    for sight in life.sights:
        if sight.state != state:
            found.append(("readers", f"{sight.who} saw {sight.state}, its state is {state}"))
        elif state == "done" and sight.content != content and (sight.who != "stream" or life.job.stream):
            found.append(("readers", f"{sight.who} saw {sight.content[:80]!r}, its result says {content[:80]!r}"))
    return found


def _late(facts: Facts, history: History) -> list[tuple[str, str]]:
    deadline, ended = float(facts.hash.get("deadline", 0)), float(facts.hash.get("ended", 0))
    late_ms = ended - deadline
    if not deadline or late_ms <= LATE_MS or history.near(deadline, ended):
        return []
    return [("late", f"ended ({facts.hash['state']}) {late_ms:.0f} ms after its deadline, with no fault near")]


def _untouched(facts: Facts, history: History) -> bool:
    """Ran once, in one tier, started within FORESIGHT_MS, and no fault was near from submit to start."""
    started, submitted = _started_ms(facts), float(facts.hash.get("submitted", 0))
    kinds = [fields["kind"] for _, fields in facts.events]
    if not started or "restarted" in kinds or facts.hash.get("attempt") != "1" or facts.hash.get("reason"):
        return False
    if len(facts.hash.get("tiers", "").split()) != 1 or started - submitted > FORESIGHT_MS:
        return False
    return not history.near(submitted, started)


def _started_ms(facts: Facts) -> int:
    return next((at for at, fields in facts.events if fields["kind"] == "started"), 0)


def _pairs(words: list[bytes]) -> dict[str, str]:
    texts = [word.decode("utf-8", "replace") for word in words]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _parse(raw: bytes | None) -> dict[str, Any] | None:
    return None if raw is None else dict(json.loads(raw))
