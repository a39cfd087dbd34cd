"""Options of what the daemon tells about itself: its log, its traces. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from metamusesd.config.option import option


@dataclass(frozen=True, slots=True)
class Log:
    """What is written to standard error, or to the journal."""

    level: str = option("info", "", choices=("debug", "info", "warning", "error"))
    format: str = option(
        "auto",
        "`auto`: the journal's own fields where standard error is the journal, colours on a terminal, JSON lines "
        "elsewhere.",
        choices=("auto", "console", "json", "journal"),
    )
    prompts: bool = option(
        False,
        "DANGER: writes the beginning of every prompt and of its answer, 200 characters each, beside the end of its "
        "job. Whoever reads the log reads what your users wrote. For debugging alone.",
    )
    repeats: int = option(
        50, "The same event of one process about one child is written so often in repeat_s; then only counted.",
        least=1, most=1_000_000,
    )  # fmt: skip
    repeats_jobs: int = option(
        1000,
        "The same for events that name a job. 1000 in ten seconds cost the dispatcher under 1 % of a core.",
        least=1,
        most=1_000_000,
    )
    repeat_s: float = option(
        10.0, "See repeats; when it is over, the last of them is written with their number.", least=0.1, most=3600
    )


@dataclass(frozen=True, slots=True)
class Health:
    """Where the daemon tells how it is, besides its UNIX socket."""

    tcp: str = option(
        "",
        "An address of this machine alone, such as 127.0.0.1:9464, for a Prometheus that cannot scrape a UNIX socket. "
        "Empty: none. Not changed by a reload.",
    )


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Traces, for whoever runs a collector of OpenTelemetry. Needs `pip install metamusesd[otel]`."""

    otlp_endpoint: str = option(
        "",
        "Where traces go, by OTLP over HTTP: http://host:4318, or the whole address of the receiver. Empty: none are "
        "made.",
    )
    sample: float = option(
        1.0, "The share of the jobs that are traced. A producer that has decided for its own trace decides here, too.",
        least=0, most=1,
    )  # fmt: skip
