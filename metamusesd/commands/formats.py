"""Stage 0 · command line · other formats of a model's file: make them, measure them here, choose one.

    make ─► perplexity, against the source's ─► speed of those within the bound, in rounds that alternate the files
    ─► the fastest, if that is a clear gain; else the source ─► kept, with a record (metamusesd/formats.py)

`bench --formats` asks for each configured model, `models fetch --derive` for the demo model. Candidates lie in the
models directory's workshop meanwhile, which is removed whatever happens.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from metamusesd.commands import measuring, screen
from metamusesd.config import DEMO_MODEL, Config, Model, Tier
from metamusesd.control import WorkerSpec
from metamusesd.engines.base import EngineSpec
from metamusesd.engines.llamacpp.formats import FORMATS, bytes_at_most, candidates
from metamusesd.errors import EngineFailed, FetchFailed, InvalidRequest, ModelNotFound
from metamusesd.fetch import put_in_place, workshop
from metamusesd.formats import SOURCE, derived_path, idle_files, keep, whole_file
from metamusesd.gguf import Header, read_header
from metamusesd.models import hash_file
from metamusesd.worker.boot import spec_of

PROGRAM = "metamusesd.engines.llamacpp.derive"
WORSE_AT_MOST = 0.02  # of the source's perplexity
GAIN_AT_LEAST = 1.05  # else the source stays
ROUNDS = 3
PROMPT_WORDS = 256
JOB_PROMPT, JOB_ANSWER = 200, 100  # tokens of the job by which formats are compared
LEFT_FREE = 1 << 30  # bytes: the queue's files may be on this disk
LIMIT_S, LIMIT_S_A_BYTE = 600, 600 / 1e9

Row = dict[str, Any]


@dataclass(slots=True)
class Candidate:
    """One file and what was measured on it. `digest`: of a file that lies in its place already."""

    form: str
    path: Path
    digest: str = ""
    size_bytes: int = 0
    perplexity: float = math.nan
    rounds: list[Row] = field(default_factory=list)
    problem: str = ""  # why it is out

    def rate(self, name: str) -> float:
        """Tokens/s of a prompt, of one stream (decode), of all slots together (batch); the median of the rounds."""
        return statistics.median(rates(row)[name] for row in self.rounds)

    @property
    def job_s(self) -> float:
        """Seconds of the worker for a usual job in a full batch."""
        return JOB_PROMPT / self.rate("prefill") + JOB_ANSWER / self.rate("batch")


@dataclass(frozen=True, slots=True)
class Trial:
    """One model. `config` names the source as its file; `forced`: the only form is taken whatever is measured."""

    config: Config
    worker: WorkerSpec
    forms: tuple[str, ...]
    header: Header
    forced: bool = False

    @property
    def source(self) -> Path:
        return self.config.model_path(self.config.models[self.worker.model])


def trial(config: Config, worker: WorkerSpec, tried: Sequence[str] = (), *, forced: bool = False) -> Trial:
    """`tried`: these formats, instead of those that may pay. Raises InvalidRequest for one that the file has already,
    and for a file in several parts."""
    source = config.model_path(config.models[worker.model])
    header = read_header(source)
    if header.entries.get("split.count", 1) > 1:
        raise InvalidRequest("MODEL", f"{source.name} is one of several parts", "merge them with llama-gguf-split")
    if header.quantization in tried:
        raise InvalidRequest("--try", f"{source.name} is {header.quantization} already", "try others")
    return Trial(config, worker, tuple(tried) or candidates(header), header, forced)


def derive(config: Config, directory: Path, form: str) -> None:
    """For `models fetch`: the demo model on one core. `form`: auto, or a format that is taken whatever is measured."""
    if not (directory / DEMO_MODEL).is_file():
        raise ModelNotFound(f"{directory / DEMO_MODEL}: no such file; run `metamusesd models fetch smollm2`")
    clean_up_when_told_to_end()
    demo = replace(config, models={"smollm2": Model(file=str(directory / DEMO_MODEL))},
                   tiers={"fast": Tier(model="smollm2")}, choices={})  # fmt: skip
    worker = WorkerSpec("fast-0", "fast", "smollm2", (max(os.sched_getaffinity(0)),))
    forced = form != "auto"
    found = compare(trial(demo, worker, (form,) if forced else (), forced=forced), write=True)
    screen.show(*found.table)
    print(found.said)


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome: the record, the figures of source and choice by digest, and both in words."""

    row: Row
    figures: dict[str, Row]
    table: tuple[object, ...]
    said: str


def compare(trial: Trial, *, write: bool) -> Found:
    """Make, measure, choose, and keep if asked. Takes minutes. Raises EngineFailed when the source itself fails."""
    spec = spec_of(trial.config, trial.worker)
    with workshop(trial.source.parent, "run this as the daemon's user") as work:
        files = [Candidate(SOURCE, trial.source, spec.model_digest), *_beside(trial, work, spec.model_digest)]
        _look_for_room(trial, [one.form for one in files[1:] if not one.digest])
        for one in files:
            _make(trial, one)
        for one in files:
            _judge(trial, one, files[0])
        for number in range(ROUNDS):
            for one in files:
                _time(trial, one, spec, f"round {number + 1} of {ROUNDS}")
        chosen = files[-1] if trial.forced else choose(files)
        chosen.digest = chosen.digest or hash_file(chosen.path)
        row = _row(trial, files, chosen)
        figures = {one.digest: _figures(one) for one in {id(one): one for one in (files[0], chosen)}.values()}
        said = _keep(trial, chosen, row) if write else _left(chosen)
        return Found(row, figures, (_table(trial, files, chosen),), said)


def choose(files: Sequence[Candidate]) -> Candidate:
    """The fastest whose perplexity is within the bound; the source unless that is a clear gain."""
    source = files[0]
    good = [one for one in files[1:] if not one.problem and one.perplexity <= source.perplexity * (1 + WORSE_AT_MOST)]
    best = min(good, key=lambda one: one.job_s, default=source)
    return best if source.job_s / best.job_s >= GAIN_AT_LEAST else source


def rates(row: Row) -> dict[str, float]:
    """What counts of a measuring process' figures."""
    decode = list(row["decode"].values())
    return {"prefill": next(iter(row["prefill"].values())), "decode": decode[0], "batch": decode[-1]}


# the steps


def _beside(trial: Trial, work: Path, source_digest: str) -> list[Candidate]:
    """A file that an earlier run, or another host, has made of this very source is not made again."""
    found = []
    for form in trial.forms:
        digest = whole_file(trial.source, form, source_digest)
        found.append(Candidate(form, derived_path(trial.source, form) if digest else work / f"{form}.gguf", digest))
    return found


def _look_for_room(trial: Trial, forms: Sequence[str]) -> None:
    needed = sum(bytes_at_most(trial.header, form) for form in forms)
    free = shutil.disk_usage(trial.source.parent).free
    room = f"{trial.source.parent}: {screen.size(free)} are free, up to {screen.size(needed)} are needed meanwhile"
    if free < needed + LEFT_FREE:
        raise FetchFailed(f"{room}, and {screen.size(LEFT_FREE)} must stay; make room, or try fewer formats")
    _say(f"{trial.worker.model}: {', '.join(trial.forms) or 'no other format may pay'}. {room}")


def _make(trial: Trial, one: Candidate) -> None:
    """Write it into the workshop, if it is not there."""
    if one.digest:
        return
    _say(f"making {one.form}")
    try:
        _call(trial, "quantize", str(trial.source), str(one.path), one.form)
    except EngineFailed as error:
        _leave_out(trial, one, error)


def _judge(trial: Trial, one: Candidate, source: Candidate) -> None:
    """Its perplexity, against the source's. Who is out needs no room any more."""
    if one.problem:
        return
    _say(f"perplexity of {one.form}")
    one.size_bytes = one.path.stat().st_size
    cores = ",".join(map(str, trial.worker.cores))
    try:
        one.perplexity = json.loads(_call(trial, "quality", str(one.path), cores))["perplexity"]
        if not math.isfinite(one.perplexity):
            raise EngineFailed(f"{one.path.name}: its perplexity is {one.perplexity}")
    except EngineFailed as error:
        _leave_out(trial, one, error)
    if not trial.forced and not one.problem and one.perplexity > source.perplexity * (1 + WORSE_AT_MOST):
        one.problem = f"worse by more than {WORSE_AT_MOST:.0%}"
    if one.problem and not one.digest:
        one.path.unlink(missing_ok=True)


def _time(trial: Trial, one: Candidate, spec: EngineSpec, which: str) -> None:
    """One round: the file is loaded as a worker would load it."""
    if one.problem:
        return
    _say(f"speed of {one.form}, {which}")
    streams = list(dict.fromkeys((1, spec.slots)))
    try:
        found = measuring.figures(trial.worker, replace(spec, model_path=str(one.path)), [PROMPT_WORDS], streams)
        if not found["prefill"]:
            raise EngineFailed(f"a context of {spec.context} tokens is too short to measure prompts")
        one.rounds.append(found)
    except EngineFailed as error:
        _leave_out(trial, one, error)


def _leave_out(trial: Trial, one: Candidate, error: EngineFailed) -> None:
    """One of several candidates may fail; the source, or the only form that is wanted, may not."""
    if one.form == SOURCE or trial.forced:
        raise error
    one.problem = error.message
    one.rounds.clear()


def _call(trial: Trial, *arguments: str) -> str:
    """One piece of work in a process of its own; its last line of output."""
    command = [sys.executable, "-m", PROGRAM, *arguments]
    limit_s = LIMIT_S + LIMIT_S_A_BYTE * trial.source.stat().st_size
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, check=False, preexec_fn=measuring.dying_with_us()
        )
    except subprocess.TimeoutExpired as error:
        raise EngineFailed(f"{arguments[0]}: not done within {limit_s:.0f} s") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        advice = "; run `pip install 'metamusesd[llamacpp]'`" if reason.startswith("ModuleNotFoundError") else ""
        raise EngineFailed(f"{arguments[0]}: {reason}{advice}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def _say(text: str) -> None:
    print(f"  {text} …", file=sys.stderr, flush=True)


# what comes of it


def _row(trial: Trial, files: Sequence[Candidate], chosen: Candidate) -> Row:
    source, file = files[0], trial.source.name
    measured = {
        one.form: {"bytes": one.size_bytes, "perplexity": one.perplexity, "problem": one.problem,
                   "tokens_s": {name: one.rate(name) for name in rates(one.rounds[0])} if one.rounds else {}}
        for one in files
    }  # fmt: skip
    return {
        "source": source.digest, "format": chosen.form, "digest": chosen.digest,
        "file": file if chosen is source else derived_path(trial.source, chosen.form).name,
        "gain": source.job_s / chosen.job_s, "change": chosen.perplexity / source.perplexity - 1,
        "at": datetime.now(UTC).isoformat(timespec="seconds"), "cores": trial.worker.threads,
        "slots": trial.worker.slots, "measured": measured,
    }  # fmt: skip


def _figures(one: Candidate) -> Row:
    """As rates.json has them: the medians of the rounds."""
    last = one.rounds[-1]
    medians = {
        kind: {key: statistics.median(row[kind][key] for row in one.rounds) for key in last[kind]}
        for kind in ("prefill", "decode")
    }
    return last | medians | {"digest": one.digest}


def _table(trial: Trial, files: Sequence[Candidate], chosen: Candidate) -> object:
    source, worker = files[0], trial.worker
    headings = ("format", ">size", ">perplexity", ">change", ">prefill/s", ">decode/s", f">{worker.slots} at once/s",
                ">a job", ">gain", "")  # fmt: skip
    rows = []
    for one in files:
        name = f"{trial.header.quantization}, the source" if one is source else one.form
        quality = (
            screen.size(one.size_bytes),
            f"{one.perplexity:.3f}",
            f"{one.perplexity / source.perplexity - 1:+.1%}",
        )
        speed = ["-"] * 5
        if one.rounds:
            speed = [f"{one.rate(kind):.0f}" for kind in ("prefill", "decode", "batch")]
            speed += [f"{one.job_s:.2f} s", f"{source.job_s / one.job_s:.2f}×"]
        verdict = "chosen" if one is chosen else one.problem
        rows.append((name, *(quality if one.size_bytes else ("-",) * 3), *speed, screen.plain(verdict)))
    where = f"cores {screen.numbers(worker.cores)}"
    title = f"{worker.model} on {where}; a job: {JOB_PROMPT} prompt and {JOB_ANSWER} answer tokens in a full batch"
    return screen.table(headings, rows, title)


def _keep(trial: Trial, chosen: Candidate, row: Row) -> str:
    """Put the file beside its source, then write the record: never one that names a file that is not there yet."""
    lines = []
    if chosen.form != SOURCE and chosen.path != (target := derived_path(trial.source, chosen.form)):
        with chosen.path.open("rb") as file:
            os.fsync(file.fileno())  # a power cut must not leave half a file of the right length
        put_in_place(chosen.path, target, chosen.digest)
        lines.append(f"{target}  {screen.size(chosen.size_bytes)}  {chosen.digest}")
    if not keep(trial.source, row):
        raise FetchFailed(f"{trial.source.parent}: the choice cannot be written down; run this as the daemon's user")
    name, model = trial.worker.model, trial.config.models[trial.worker.model]
    if chosen.form == SOURCE:
        lines.append(f"{name}: no format is clearly faster at equal quality here; the file stays as it is")
    elif model.format == "auto":
        lines.append(f"{name}: {chosen.form} from the next start, or from `metamusesd reload` on")
    else:
        lines.append(f'to use it: models.{name}.format = "auto", then `metamusesd reload`')
    lines += [f"not needed any more: `metamusesd models remove {path.name}`" for path in idle_files(trial.source)]
    return "\n".join(lines)


def _left(chosen: Candidate) -> str:
    if chosen.form == SOURCE:
        return "no format is clearly faster at equal quality here"
    return f"{chosen.form} would be chosen; nothing is kept without --write"


def clean_up_when_told_to_end() -> None:
    """SIGTERM, or a terminal that is gone, is like Ctrl-C from now on: gigabytes must not be left behind."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup
            signal.signal(signum, signal.default_int_handler)


def check_formats(text: str) -> tuple[str, ...]:
    """Of `--try`. Raises InvalidRequest."""
    names = tuple(filter(None, (part.strip() for part in text.split(","))))
    if strange := [name for name in names if name not in FORMATS]:
        raise InvalidRequest("--try", f"{strange[0]!r} is no format", f"use some of {','.join(FORMATS)}")
    return names
