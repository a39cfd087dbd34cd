"""Faults benchmark · bench process · the proof: producers beside chaos, then the oracle over the whole history.

warm-up ── producers + chaos, N minutes ── everybody drains ── a calm burst ── oracle ── SIGTERM ── nothing left
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults import leftovers, node
from benchmarks.faults.chaos import Chaos
from benchmarks.faults.family import Family
from benchmarks.faults.history import History, Life
from benchmarks.faults.oracle import RULES, Facts, Violation, collect, indeterminate, judge, order
from benchmarks.faults.plan import calm, job
from benchmarks.faults.producers import Producers
from benchmarks.faults.raw import PREFIX, RawProducer
from benchmarks.faults.resp import Redis
from benchmarks.report import Report, absolute

CLIENTS, LINES = 3, 40  # lines: jobs in flight at a time
PAUSE_S = (0.0, 3.0)
WARM_UP_S, CALM_JOBS = 10.0, 150
MOST_SHOWN, MOST_EVENTS = 3, 40
SAY_EVERY_S = 30.0


@dataclass(slots=True)
class Verdict:
    """What one run came to."""

    history: History
    folder: Path
    facts: dict[str, Facts] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    unsure: list[Violation] = field(default_factory=list)  # of jobs inside a durability window
    pairs: int = 0  # that order was looked at
    notes: list[str] = field(default_factory=list)


async def prove(seconds: float, seed: int, appendfsync: str) -> Verdict:
    """One run. The folder stays when something was wrong."""
    family, history = Family(appendfsync), History(seed)
    verdict = Verdict(history, family.folder)
    try:
        await family.start()
        producer, why_not = await node.start(family)
        verdict.notes += [why_not] if why_not else []
        before = await _work(family, history, producer, seconds, seed, appendfsync)
        await family.until_ready(60.0)
        await _examine(family, verdict, before, appendfsync)
    except RuntimeError as error:
        verdict.violations.append(Violation("family", "", str(error)))
    except BaseException:
        print(f"broken off; everything is in {family.folder}", flush=True)
        verdict.violations.append(Violation("family", "", "the run was broken off"))
        raise
    finally:
        wrong = bool(verdict.violations)
        if wrong:
            history.write(family.folder / "history.jsonl")
            (family.folder / "offenders.txt").write_text("\n".join(explain(verdict, most=1000, events=100_000)))
        family.close(keep=wrong)
    return verdict


async def _work(
    family: Family, history: History, producer: node.NodeProducer | None, seconds: float, seed: int, appendfsync: str
) -> leftovers.Census:
    """Producers and chaos; the census after warm-up."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(family.client()) for _ in range(CLIENTS)]
        raw = RawProducer(family.redis_socket)
        stack.callback(raw.close)
        if producer is not None:
            stack.push_async_callback(producer.close)
        producers = Producers(clients, raw, producer, history, seed)
        numbers, stop = itertools.count(), asyncio.Event()
        lines = [asyncio.create_task(_line(producers, seed, line, numbers, stop)) for line in range(LINES)]
        await asyncio.sleep(min(WARM_UP_S, seconds / 4))
        before = await leftovers.census(family)
        say = asyncio.create_task(_say(history, time.monotonic()))
        await Chaos(family, history, seed, appendfsync).run(seconds)
        stop.set()
        await asyncio.gather(*lines)
        say.cancel()
        await asyncio.gather(*(producers.live(calm(seed, number)) for number in range(CALM_JOBS)))
    return before


async def _line(producers: Producers, seed: int, line: int, numbers: itertools.count[int], stop: asyncio.Event) -> None:
    """One job after the other until the end."""
    dice = random.Random(f"{seed}/line/{line}")
    while not stop.is_set():
        await producers.live(job(seed, next(numbers)))
        await asyncio.sleep(dice.uniform(*PAUSE_S))


async def _say(history: History, start_s: float) -> None:
    """A line now and then, so that nobody thinks it hangs."""
    while True:
        await asyncio.sleep(SAY_EVERY_S)
        passed_s = time.monotonic() - start_s
        print(f"{passed_s:5.0f} s: {len(history.lives)} jobs, {len(history.faults)} faults", flush=True)


async def _examine(family: Family, verdict: Verdict, before: leftovers.Census, appendfsync: str) -> None:
    history, redis = verdict.history, Redis(family.redis_socket)
    await leftovers.drained(redis)
    for life in history.lives:
        facts = verdict.facts[life.id] = await collect(redis, life.id)
        wrong = judge(life, facts, history)
        wrong += [Violation("twins", life.id, f"{id} exists as well") for id in await _present(redis, life.absent)]
        (verdict.unsure if indeterminate(life, facts, history, appendfsync) else verdict.violations).extend(wrong)
    misplaced, verdict.pairs = order([(life, verdict.facts[life.id]) for life in history.lives], history)
    verdict.violations += misplaced
    verdict.violations += [Violation("family", "", wrong) for wrong in history.wrongs]
    verdict.violations += await leftovers.keys(redis)
    redis.close()
    wrong, after = await leftovers.family(family, before)
    verdict.violations += wrong
    verdict.notes += _family_notes(before, after, family)
    code = await family.stop()
    if code:
        verdict.violations.append(Violation("family", "", f"left with {code} on the last SIGTERM"))
    verdict.violations += await leftovers.nothing(family, before)


async def _present(redis: Redis, ids: list[str]) -> list[str]:
    """Those ids that name a job."""
    if not ids:
        return []
    there = await redis.ask_all([("EXISTS", f"{PREFIX}:job:{id}") for id in ids])
    return [id for id, found in zip(ids, there, strict=True) if found]


def _family_notes(before: leftovers.Census, after: leftovers.Census, family: Family) -> list[str]:
    memory = ", ".join(f"{name} {before.memory_mb.get(name, 0):.0f} → {mb:.0f}" for name, mb in after.memory_mb.items())
    files = ", ".join(f"{name} {before.descriptors.get(name, 0)} → {n}" for name, n in after.descriptors.items())
    return [
        f"resident MB after warm-up → at the end: {memory}",
        f"descriptors: {files}",
        f"daemons started: {family.starts}",
    ]


def rows(verdict: Verdict, appendfsync: str) -> Report:
    """Counts, then one row a rule with the bar that none was broken."""
    history = verdict.history
    case = f"seed {history.seed}, appendfsync {appendfsync}"
    report = Report(benchmark="faults", command="")
    accepted = [life for life in history.lives if life.accepted_ms and not life.job.spoil]
    states = Counter(verdict.facts.get(life.id, Facts()).hash.get("state", "absent") for life in accepted)
    counts = {"jobs accepted": len(accepted)}
    counts |= {f"… {state}": count for state, count in sorted(states.items())}
    counts |= {"… through Node": sum(1 for life in history.lives if any("node:" in what for _, what in life.notes))}
    counts |= {"jobs refused": sum(1 for life in history.lives if life.refused)}
    counts |= {"jobs spoilt by a foreign hand": sum(1 for life in history.lives if life.job.spoil)}
    counts |= {"jobs gone, and submitted again": sum(bool(life.lost) for life in history.lives)}
    counts |= {"jobs inside a durability window that it touched": len({wrong.id for wrong in verdict.unsure})}
    counts |= {"submits repeated after no answer": sum(life.unsure for life in history.lives)}
    counts |= {"restarts seen in streams": _restarts(verdict)}
    counts |= {f"faults: {what}": n for what, n in sorted(Counter(map(_fault_name, history.faults)).items())}
    counts |= {"jobs compared for order": verdict.pairs}
    for name, count in counts.items():
        report.rows.append(absolute(name, case, "count", [count]))
    report.rows.append(absolute("indeterminate", case, "violations", [len(verdict.unsure)],
                                bar="<= 0" if appendfsync == "always" else None))  # fmt: skip
    broken = Counter(violation.rule for violation in verdict.violations)
    for rule in RULES:
        report.rows.append(absolute(f"violations: {rule}", case, "violations", [broken[rule]], bar="<= 0"))
    report.notes += verdict.notes
    return report


def explain(verdict: Verdict, most: int = MOST_SHOWN, events: int = MOST_EVENTS) -> list[str]:
    """The offenders, the first `most` with their history, for people."""
    lines = [f"{v.rule}: {v.id}: {v.text}" for v in verdict.violations[: 10 * most]]
    lives = {life.id: life for life in verdict.history.lives}
    shown = list(dict.fromkeys(v.id for v in verdict.violations if v.id in lives))[:most]
    for id in shown:
        head, *moments, hash, result = _biography(lives[id], verdict)
        if len(moments) > events:
            moments = [*moments[: events // 2], f"  … {len(moments) - events} more …", *moments[-events // 2 :]]
        lines += ["", head, *moments, hash, result]
    return lines


def _biography(life: Life, verdict: Verdict) -> list[str]:
    facts = verdict.facts.get(life.id, Facts())
    lines = [
        f"job {life.id} ({life.job.kind}): {life.job.query[:200]!r}, class {life.job.priority}, tier {life.job.tier}"
    ]
    moments = [(at, f"producer: {what}") for at, what in life.notes]
    moments += [
        (sight.at_ms, f"{sight.who} saw {sight.state} {sight.code} {sight.content[:60]!r}") for sight in life.sights
    ]
    moments += [(float(at), f"event: {_short(fields)}") for at, fields in facts.events]
    times = [at for at, _ in moments]
    if times:
        near = verdict.history.near(min(times), max(times))
        moments += [(fault.at_ms, f"CHAOS: {fault.what} {fault.victim} {fault.detail}") for fault in near]
    moments.sort(key=lambda moment: moment[0])
    start = moments[0][0] if moments else 0.0
    lines += [f"  {at - start:9.1f} ms  {what}" for at, what in moments]
    return [*lines, f"  hash: {facts.hash}", f"  result: {str(facts.result)[:600]}"]


def _short(fields: dict[str, str]) -> str:
    return " ".join(
        f"{name}={value[:40]!r}" if name == "text" else f"{name}={value[:80]}" for name, value in fields.items()
    )


def _restarts(verdict: Verdict) -> int:
    return sum(fields["kind"] == "restarted" for facts in verdict.facts.values() for _, fields in facts.events)


def _fault_name(fault: object) -> str:
    what, victim = fault.what, fault.victim  # type: ignore[attr-defined]
    return f"{what} {'worker' if '-' in victim else victim}" if what in ("kill", "stop") else what
