"""Stage 0 · command line · requantize the demo model, and keep the fastest format whose quality holds on this CPU.

Every candidate is made, its perplexity compared with the source's, its speed measured on one core in rounds that
alternate the files. The one that is kept stands beside the source with a JSON of its own: where it comes from, and what
was measured.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metamusesd.commands import screen
from metamusesd.config import DEMO_MODEL
from metamusesd.errors import FetchFailed, ModelNotFound
from metamusesd.fetch import put_in_place, workshop
from metamusesd.models import digest_of, hash_file, write_json

PROGRAM = "metamusesd.engines.llamacpp.derive"
SOURCE_FORMAT = "as it is"
CANDIDATES = ("Q8_0", "Q4_0", "IQ4_NL")
WORSE_AT_MOST = 0.02  # of the source's perplexity
GAIN_AT_LEAST = 1.05  # else the source stays
ROUNDS = 2
JOB_PROMPT, JOB_ANSWER = 200, 100  # tokens of the job by which formats are compared
LIMIT_S = 600


@dataclass(slots=True)
class Candidate:
    """One file and what was measured on it."""

    form: str
    path: Path
    perplexity: float = 0.0
    rates: list[dict[str, float]] = field(default_factory=list)

    def rate(self, name: str) -> float:
        return statistics.median(rates[name] for rates in self.rates)

    @property
    def job_s(self) -> float:
        """Seconds of one core for a usual job in a full batch."""
        return JOB_PROMPT / self.rate("prefill") + JOB_ANSWER / self.rate("batch")


def derive(directory: Path, form: str) -> int:
    """`form`: auto, or the format that is wanted whatever is measured. Takes some minutes."""
    source = directory / DEMO_MODEL
    if not source.is_file():
        raise ModelNotFound(f"{source}: no such file; run `metamusesd models fetch smollm2`")
    with workshop(directory) as work:
        files = [Candidate(SOURCE_FORMAT, source)]
        for name in CANDIDATES if form == "auto" else (form,):
            _say(f"making {name}")
            files.append(Candidate(name, work / f"{name}.gguf"))
            _call("quantize", str(source), str(files[-1].path), name)
        _measure(files)
        chosen = choose(files) if form == "auto" else files[-1]
        _show(files, chosen)
        if chosen is files[0]:
            print("no format is clearly faster at equal quality here; the model stays as it is")
            return 0
        _keep(files[0], chosen, directory)
    return 0


def choose(files: list[Candidate]) -> Candidate:
    """The fastest whose perplexity is within the bound; the source unless that is a clear gain."""
    source = files[0]
    good = [one for one in files[1:] if one.perplexity <= source.perplexity * (1 + WORSE_AT_MOST)]
    best = min(good, key=lambda one: one.job_s, default=source)
    return best if source.job_s / best.job_s >= GAIN_AT_LEAST else source


def _measure(files: list[Candidate]) -> None:
    core = max(os.sched_getaffinity(0))
    for one in files:
        _say(f"perplexity of {one.form}")
        one.perplexity = json.loads(_call("quality", str(one.path), str(core)))["perplexity"]
    for number in range(ROUNDS):
        for one in files:
            _say(f"speed of {one.form}, round {number + 1} of {ROUNDS}")
            one.rates.append(json.loads(_call("speed", str(one.path), str(core))))


def _call(*arguments: str) -> str:
    """One piece of work in a process of its own; its last line of output."""
    command = [sys.executable, "-m", PROGRAM, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise FetchFailed(f"derive {arguments[0]}: not done within {LIMIT_S} s") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise FetchFailed(f"derive {arguments[0]}: {reason}; is `metamusesd[llamacpp]` installed?")
    return (done.stdout.strip().splitlines() or [""])[-1]


def _say(text: str) -> None:
    print(f"  {text} …", file=sys.stderr, flush=True)


def _show(files: list[Candidate], chosen: Candidate) -> None:
    source = files[0]
    headings = (
        "format",
        ">size",
        ">perplexity",
        ">change",
        ">prefill/s",
        ">decode/s",
        ">8 at once/s",
        ">a job",
        ">gain",
        "",
    )
    rows = [
        (
            one.form, screen.size(one.path.stat().st_size), f"{one.perplexity:.3f}",
            f"{one.perplexity / source.perplexity - 1:+.1%}", f"{one.rate('prefill'):.0f}", f"{one.rate('decode'):.0f}",
            f"{one.rate('batch'):.0f}", f"{one.job_s:.2f} s", f"{source.job_s / one.job_s:.2f}×",
            "kept" if one is chosen else "",
        )
        for one in files
    ]  # fmt: skip
    screen.show(screen.table(headings, rows, f"one core; a job: {JOB_PROMPT} prompt and {JOB_ANSWER} answer tokens"))


def _keep(source: Candidate, chosen: Candidate, directory: Path) -> None:
    stem = source.path.name.removesuffix(".gguf").rpartition(".")[0]
    digest = hash_file(chosen.path)
    path = put_in_place(chosen.path, directory / f"{stem}.{chosen.form}.gguf", digest)
    write_json(path.with_suffix(".json"), _provenance(source, chosen, digest))
    print(f"{path}  {path.stat().st_size / 1e6:.1f} MB  {digest}")
    print(f'use it: [models.smollm2] file = "{path.name}", or --set models.smollm2.file={path.name}')


def _provenance(source: Candidate, chosen: Candidate, digest: str) -> dict[str, Any]:
    return {
        "digest": digest,
        "format": chosen.form,
        "derived_from": source.path.name,
        "source_digest": digest_of(source.path),
        "perplexity": chosen.perplexity,
        "source_perplexity": source.perplexity,
        "tokens_s": {name: chosen.rate(name) for name in chosen.rates[0]},
        "source_tokens_s": {name: source.rate(name) for name in source.rates[0]},
        "gain": source.job_s / chosen.job_s,
        "cpu": _cpu(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
