"""Operate benchmark · bench process · a day of traffic in an hour: all jobs end, and nothing grows.

    rest ─► the day (day.py): jobs come as the hours tell, children are killed now and then ─► rest ─► judged (level.py)

One real model on one core, two echo workers, caches, the embedded Redis. Samples go to bench-results/soak/ as they are
taken, the picture to docs/soak.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

from benchmarks.faults.family import Family
from benchmarks.faults.resp import Redis
from benchmarks.operate import day, level, soak_picture
from benchmarks.operate.watch import Sample, load_s, look, write
from benchmarks.report import Report, Row, absolute
from metamusesd.client import Client
from metamusesd.errors import MetamusesdError, RequestError, WaitTimeout
from metamusesd.job import TERMINAL

MINUTES, QUICK_MINUTES = 60.0, 1.0
PEAK_HZ = 4.0
SAMPLE_S, SAY_S = 5.0, 60.0
RESULT_TTL_S, REST_S = 30, 45.0  # all keys of a job are gone when its result has expired
WAIT_S = 900.0  # longer than any job may take here
KILLS = (("worker", 12), ("dispatcher", 3), ("vectors", 2))  # in an hour
KILLS_UNTIL = 0.45  # of the day: then everybody lives long enough to show whether it grows
FAST_UNTIL = 0.25  # the real model's worker sooner: it touches the last of its KV cache late
FOLDER, PICTURE = Path("bench-results/soak"), Path("docs/soak.svg")
CONFIG = """
[daemon]
state_dir = "{folder}/s"
models_dir = "{models}"
[redis]
appendfsync = "{appendfsync}"
[queue]
result_ttl_s = {ttl}
[cache]
ttl_hours = {cache_hours}
max_entries = 300
repeat_s = 0.0
[models.real]
file = "{file}"
context = 2048
[models.echo]
engine = "echo"
context = 300000
[tiers.fast]
model = "real"
workers = 1
slots = 4
[tiers.medium]
model = "echo"
workers = 2
slots = 8
"""


class Soak:
    """One run: the daemon, its traffic, what became of it."""

    def __init__(self, family: Family, client: Client, seconds: float, seed: int) -> None:
        self._family, self._client, self._seconds, self._seed = family, client, seconds, seed
        self._redis = Redis(family.redis_socket)
        self._started_s = time.monotonic()
        self.ends: Counter[str] = Counter()  # "kind state"
        self.wrong: list[str] = []  # jobs that ended as they should not
        self.lost: list[str] = []  # jobs without an end
        self.samples: list[Sample] = []
        self.kills: list[tuple[float, str]] = []
        self.rests: list[Sample] = []

    async def run(self) -> None:
        """Rest, the day, rest."""
        await self._rest()
        watching = asyncio.create_task(self._watch())
        killing = asyncio.create_task(self._kill())
        self._started_s = time.monotonic()
        try:
            await self._traffic()
        finally:
            for task in (watching, killing):
                task.cancel()
            await asyncio.gather(watching, killing, return_exceptions=True)
        await self._rest()
        self._redis.close()

    async def _rest(self) -> None:
        """Until every result has expired."""
        for number in range(8):  # one of each kind that is kept: scripts, answers, vectors are there before and after
            await self._client.execute({"user_query": day.question(number), "tier": "medium"}, WAIT_S)
        await asyncio.sleep(REST_S)
        if (sample := await self._look()) is not None:
            self.rests.append(sample)

    async def _look(self) -> Sample | None:
        return await look(self._family, self._redis, self._started_s, self.ends.total())

    async def _traffic(self) -> None:
        """Every job at its time; returns when the last one has ended."""
        alive: set[asyncio.Task[None]] = set()
        for job in day.jobs(self._seed, self._seconds, PEAK_HZ):
            await asyncio.sleep(max(0.0, self._started_s + job.at * self._seconds - time.monotonic()))
            task = asyncio.create_task(self._live(job))
            alive.add(task)
            task.add_done_callback(alive.discard)
        await asyncio.gather(*alive)

    async def _live(self, job: day.Job) -> None:
        """One job from submit to its end, which is noted."""
        id = ""
        try:
            id = (await self._client.submit(job.body)).id
            if job.cancel_s:
                await asyncio.sleep(job.cancel_s)
                await self._client.cancel(id)
            state = await (self._follow(id) if job.follow else self._end(id))
        except RequestError as error:
            state = "refused" if job.kind == "bad" else f"refused: {error.code}"
        except (WaitTimeout, TimeoutError):
            self._note(self.lost, f"{job.kind} {id}: no end after {WAIT_S:g} s")
            return
        except MetamusesdError as error:
            state = f"{type(error).__name__}: {error}"
        self.ends[f"{job.kind} {state}"] += 1
        if state not in job.may_end | {"refused"}:
            self._note(self.wrong, f"{job.kind} {id}: {state}")

    def _note(self, those: list[str], line: str) -> None:
        those.append(line)
        with (FOLDER / "wrong.txt").open("a") as out:
            out.write(line + "\n")

    async def _end(self, id: str) -> str:
        return str((await self._client.wait(id, WAIT_S)).state)

    async def _follow(self, id: str) -> str:
        """Read its stream to the end."""
        async with asyncio.timeout(WAIT_S):
            async with contextlib.aclosing(self._client.stream(id)) as events:
                async for event in events:
                    if event.kind in TERMINAL:
                        return event.kind
        return "its stream ended before it did"

    async def _watch(self) -> None:
        """Sample until cancelled; say how it goes once a minute."""
        said_s = 0.0
        while True:
            if (sample := await self._look()) is not None:
                self.samples.append(sample)
                write(FOLDER / "samples.jsonl", sample)
                if sample.at_s - said_s >= SAY_S:
                    said_s = sample.at_s
                    print(self._line(sample), flush=True)
            await asyncio.sleep(SAMPLE_S)

    def _line(self, sample: Sample) -> str:
        hour = int(8 + sample.at_s / self._seconds * day.HOURS) % 24
        pss = " ".join(f"{name} {size:.0f}" for name, size in sample.pss_mb.items())
        return (
            f"{sample.at_s / 60:5.1f} min, {hour:02d} h: {sample.done} ended, {sample.running} run, "
            f"{sample.waiting} wait, {len(self.wrong)} wrong, {sample.keys} keys, {sum(sample.fds.values())} "
            f"descriptors; MiB: {pss}; load {load_s()}"
        )

    async def _kill(self) -> None:
        """SIGKILL to a child, at random moments of its part of the day."""
        dice = random.Random(f"{self._seed}/kills")
        hours = self._seconds / 3600
        counts = [(whom, max(1, round(count * hours))) for whom, count in KILLS]
        plan = sorted((dice.uniform(0.02, KILLS_UNTIL), whom) for whom, count in counts for _ in range(count))
        for at, whom in plan:
            await asyncio.sleep(max(0.0, self._started_s + at * self._seconds - time.monotonic()))
            pids = await self._family.pids()
            status = await self._family.status()
            if vectors := (status.get("vectors") or {}).get("pid"):
                pids["vectors"] = vectors
            wanted = [name for name in pids if name == whom or (whom == "worker" and "-" in name)]
            if wanted and at < (FAST_UNTIL if (name := dice.choice(wanted)).startswith("fast") else 1.0):
                os.kill(pids[name], signal.SIGKILL)
                self.kills.append((at, name))


def run(args: argparse.Namespace) -> Report:
    """The whole case."""
    minutes = args.minutes or (QUICK_MINUTES if args.quick else MINUTES)
    seed = args.seed if args.seed is not None else 1
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    return asyncio.run(_run(args, minutes * 60, seed))


async def _run(args: argparse.Namespace, seconds: float, seed: int) -> Report:
    report = Report(benchmark="operate", command=args.command)
    model = (args.model or Path("models/SmolLM2-135M-Instruct.Q4_1.gguf")).resolve()
    hours = max(0.001, round(seconds / 3600 * 0.1, 4))  # an answer is kept for 2.4 of the day's hours
    family = Family("everysec", CONFIG, models=model.parent, file=model.name, ttl=RESULT_TTL_S, cache_hours=hours)
    kept = True
    try:
        await family.start()
        async with family.client() as client:
            soak = Soak(family, client, seconds, seed)
            await soak.run()
        code = await family.stop()
        left = family.marked()
        kept = bool(soak.lost or soak.wrong or code)
    finally:
        if kept:
            (FOLDER / "daemon.log").write_text(family.tail(1 << 20))
        family.close()
    report.rows = rows(soak, seconds)
    report.rows.append(absolute("processes left after SIGTERM", "soak", "violations", [len(left)], bar="<= 0"))
    report.notes = notes(soak, seconds, seed)
    if not args.quick:
        soak_picture.draw(PICTURE, soak.samples, soak.kills, seconds, report)
    return report


def rows(soak: Soak, seconds: float) -> list[Row]:
    """Every promise, then every series that must be level."""
    case = f"{seconds / 60:g} minutes"
    found = [
        absolute("jobs", case, "count", [soak.ends.total() + len(soak.lost)]),
        absolute("jobs without an end", case, "violations", [len(soak.lost)], bar="<= 0"),
        absolute("jobs that ended as they should not", case, "violations", [len(soak.wrong)], bar="<= 0"),
        absolute("children killed", case, "count", [len(soak.kills)]),
    ]
    names = sorted({name for sample in soak.samples for name in sample.pids})
    for unit, judge in (("MiB", level.memory), ("descriptors", level.descriptors)):
        for name in names:
            if (verdict := judge(soak.samples, name)) is not None:
                found.append(_row(verdict, f"{name}: {unit}", unit, case))
    if len(soak.rests) == 2:
        found += [_row(verdict, verdict.name, "", case) for verdict in level.rests(*soak.rests)]
    return found


def _row(verdict: level.Verdict, metric: str, unit: str, case: str) -> Row:
    """Late beside early; the bar is the rule's, as a figure."""
    return Row(
        metric=metric,
        case=f"{case}; {verdict.a_day:+.3g} a day",
        unit=unit,
        ours=round(verdict.late, 2),
        yardstick=round(verdict.early, 2),
        yardstick_name="earlier",
        ratio=round(verdict.late / verdict.early, 3) if verdict.early else None,
        bar=f"<= {verdict.allowed:.4g}",
        met=verdict.level,
    )


def notes(soak: Soak, seconds: float, seed: int) -> list[str]:
    """What a reader must know."""
    ends = ", ".join(f"{count} {what}" for what, count in sorted(soak.ends.items()))
    return [
        f"--seed {seed}; a day in {seconds / 60:g} minutes, {PEAK_HZ:g} jobs/s at its peak",
        f"ends: {ends}",
        f"killed: {', '.join(name for _, name in soak.kills)}",
        f"level: last quarter at most {level.GROWTH} x second quarter + {level.SLACK_MB:g} MiB or {level.SLACK_FDS} "
        "descriptors, and the line through the last two thirds no steeper a day; the bar is that figure",
        f"load average at the end {load_s()}",
    ]
