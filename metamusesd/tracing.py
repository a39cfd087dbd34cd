"""Stages 1 to 10 · producer, dispatcher · traces: one a job, and the only door to OpenTelemetry (the extra `otel`).

    producer's span ── traceparent, in the job's body ──► the job ─┬─ wait for routing
                                                                   ├─ route
                                                                   ├─ cache lookup
                                                                   ├─ wait in queue
                                                                   ├─ attempt ─┬─ prepare, prefill, decode
                                                                   └─ settle

Every id is made of what every dispatcher knows of a job, so that whoever runs its next attempt, on whatever host, goes
on with the same trace, and nothing about traces has to be kept anywhere. No span is alive while its job is: they are
made at once, from times that were taken anyway.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from metamusesd import __version__
from metamusesd.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import SpanContext

MOST_WAITING = 4096  # spans; further ones are dropped and counted
BATCH, BATCH_MS = 512, 1000
EXPORT_S = 5.0  # for one batch, with its retries
CLOSE_S = 2.0  # at the end of the process, for what is waiting
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class Trace:
    """Which trace a job belongs to. `parent_id`: the producer's span; 0: there is none, the job begins the trace."""

    trace_id: int
    parent_id: int
    sampled: bool


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of a job's life; times are nanoseconds since the epoch."""

    name: str
    span_id: int
    parent_id: int
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""  # why it went wrong; empty: it did not
    entry: bool = False  # where the work came into this service


def read_traceparent(text: str | None) -> Trace | None:
    """W3C Trace Context: version-trace-parent-flags, in lower case hex. What cannot be read is no context, as the
    specification wants it: a broken header upstream must not cost anybody a job."""
    found = _TRACEPARENT.fullmatch(text) if text else None
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    trace_id, parent_id = int(found[2], 16), int(found[3], 16)
    return Trace(trace_id, parent_id, bool(int(found[4], 16) & 1)) if trace_id and parent_id else None


def trace_of(job: str, submitted_ms: int, traceparent: str | None, share: float) -> Trace:
    """The producer's trace, and its decision; else one of this job alone, for `share` of the jobs."""
    if (given := read_traceparent(traceparent)) is not None:
        return given
    trace_id = _number(16, job, submitted_ms)
    return Trace(trace_id, 0, trace_id % 2**64 < share * 2**64)


def span_id(job: str, submitted_ms: int, *what: object) -> int:
    """The same for the same part of the same job, wherever it is made."""
    return _number(8, job, submitted_ms, *what)


def current_traceparent() -> str | None:
    """Of the span that is active in the caller's program. Nothing is imported: whoever has a span has OpenTelemetry."""
    trace = sys.modules.get("opentelemetry.trace")
    context = trace.get_current_span().get_span_context() if trace is not None else None
    if context is None or not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"


class Exporter:
    """Sends spans to a collector, from a thread of the library. `put` never waits; what the collector does not take in
    time is dropped and counted. Raises ConfigError when the library is not there."""

    def __init__(self, endpoint: str, instance: str) -> None:
        try:
            from opentelemetry import trace as api
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk import trace as sdk
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import export
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError as error:
            raise ConfigError(
                f"telemetry.otlp_endpoint: OpenTelemetry is not installed ({error}); pip install metamusesd[otel]"
            ) from error
        self.dropped = 0
        self._api, self._sdk = api, sdk
        self._put = self._failed = self._taken = 0
        self._words = _Words()
        about = {"service.name": "metamusesd", "service.version": __version__, "service.instance.id": instance}
        self._resource, self._scope = Resource.create(about), InstrumentationScope("metamusesd", __version__)
        self._success = export.SpanExportResult.SUCCESS
        self._sender = _Counted(OTLPSpanExporter(address(endpoint), timeout=EXPORT_S), self._took)
        self._processor = export.BatchSpanProcessor(
            cast("SpanExporter", self._sender), max_queue_size=MOST_WAITING, schedule_delay_millis=BATCH_MS,
            max_export_batch_size=BATCH,
        )  # fmt: skip

    def put(self, trace: Trace, spans: Sequence[Span]) -> None:
        """Some spans of one job, for the next batch."""
        for span in spans:
            if self._put - self._taken >= MOST_WAITING:
                self.dropped += 1
                continue
            self._put += 1
            self._processor.on_end(self._readable(trace, span))

    def lost(self) -> tuple[int, str]:
        """How many spans did not reach the collector until now, and what it said the last time."""
        return self.dropped + self._failed, self._words.last

    def close(self, done: threading.Event) -> None:
        """Send what is waiting, on a thread that dies with the process; then `done` is set. A collector that does not
        answer holds nobody: do not wait for longer than CLOSE_S. What has not begun to be sent by then is lost."""
        self._sender.until_s = time.monotonic() + CLOSE_S

        def shut_down() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]
            done.set()

        threading.Thread(target=shut_down, name="traces-end", daemon=True).start()

    def _took(self, count: int, result: SpanExportResult | None) -> None:
        """On the library's thread: the only writer of these two."""
        self._taken += count
        if result is not self._success:
            self._failed += count

    def _readable(self, trace: Trace, span: Span) -> ReadableSpan:
        kind, code, sampled = self._api.SpanKind, self._api.StatusCode, self._api.TraceFlags(1)

        def context(id: int, remote: bool) -> SpanContext:
            made: SpanContext = self._api.SpanContext(trace.trace_id, id, remote, sampled)
            return made

        return self._sdk.ReadableSpan(
            span.name, context(span.span_id, False),
            context(span.parent_id, span.entry) if span.parent_id else None,
            self._resource, dict(span.attributes), kind=kind.CONSUMER if span.entry else kind.INTERNAL,
            status=self._api.Status(code.ERROR, span.error) if span.error else self._api.Status(code.UNSET),
            start_time=span.start_ns, end_time=max(span.start_ns, span.end_ns), instrumentation_scope=self._scope,
        )  # fmt: skip


class _Counted:
    """An exporter that says how many spans it was given, and what became of them. After `until_s` it sends none."""

    def __init__(self, exporter: SpanExporter, took: Callable[[int, SpanExportResult | None], None]) -> None:
        self.until_s = math.inf
        self._exporter, self._took = exporter, took

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult | None:
        result = None
        try:
            if time.monotonic() < self.until_s:
                result = self._exporter.export(spans)
        finally:
            self._took(len(spans), result)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _Words(logging.Handler):
    """What the library says of its troubles, kept for our own log instead of standard error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        library = logging.getLogger("opentelemetry")
        library.addHandler(self)
        library.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()[:300]


def address(endpoint: str) -> str:
    """Of the receiver: the usual path, where none is given."""
    scheme, _, rest = endpoint.partition("://")
    host, _, path = rest.partition("/")
    return endpoint if path else f"{scheme}://{host}/v1/traces"


def _number(size: int, *parts: object) -> int:
    """Never 0, which means nothing in a trace."""
    made = hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "replace"), digest_size=size)
    return int.from_bytes(made.digest(), "big") or 1
