"""metamusesd.tracing: ids, the producer's context, and the way to a real receiver."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from metamusesd import tracing
from metamusesd.errors import ConfigError
from metamusesd.tracing import Exporter, Span, Trace, address, read_traceparent, span_id, trace_of
from tests.unit.collector import Collector

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_a_producers_context_is_read() -> None:
    """Its trace, its span as the parent, and its decision."""
    assert read_traceparent(GIVEN) == Trace(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, True)
    assert read_traceparent(GIVEN[:-2] + "02") == Trace(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, False)
    assert read_traceparent("cc" + GIVEN[2:] + "-what-comes-later") is not None


@pytest.mark.parametrize(
    "text",
    [None, "", "nonsense", GIVEN.upper(), GIVEN + "-more", GIVEN[:-1], "ff" + GIVEN[2:], " " + GIVEN, GIVEN + "\n",
     "00-" + "0" * 32 + GIVEN[35:], GIVEN[:36] + "0" * 16 + "-01", "0x" + GIVEN[2:]],
)  # fmt: skip
def test_what_is_no_context_is_none(text: str | None) -> None:
    """W3C: whoever cannot read it begins a trace."""
    assert read_traceparent(text) is None


def test_ids_are_the_same_wherever_they_are_made() -> None:
    """Two dispatchers that never met give one job one trace, and its parts the same names; another job others."""
    one, same, other = (trace_of(job, 5, None, 1.0) for job in ("a", "a", "b"))
    assert one == same and one.sampled and one.parent_id == 0 and one.trace_id != other.trace_id
    ids = {span_id("a", 5), span_id("a", 5, "route"), span_id("a", 6), span_id("b", 5), span_id("a", 5, "rou", "te")}
    assert len(ids) == 5 and all(0 < id < 2**64 for id in ids)


def test_the_share_holds_where_no_producer_has_decided() -> None:
    """A quarter of many jobs, none, all; a producer's trace is followed whatever the share."""
    sampled = sum(trace_of(f"j{n}", n, None, 0.25).sampled for n in range(4000))
    assert 880 < sampled < 1120
    assert not any(trace_of(f"j{n}", n, None, 0.0).sampled for n in range(100))
    assert trace_of("j", 1, GIVEN, 0.0).sampled and not trace_of("j", 1, GIVEN[:-1] + "0", 1.0).sampled


def test_the_usual_path_is_added_where_there_is_none() -> None:
    """An address with a path is taken as it is."""
    assert address("http://h:4318") == address("http://h:4318/") == "http://h:4318/v1/traces"
    assert address("https://h/otlp/v1/traces") == "https://h/otlp/v1/traces"


def test_a_program_without_opentelemetry_has_no_context_and_loads_nothing() -> None:
    """The client asks for the active span, and imports no part of the library for it."""
    code = (
        "import sys, metamusesd.client; from metamusesd.tracing import current_traceparent as now; "
        "assert now() is None; assert not [n for n in sys.modules if n.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_the_active_span_is_the_producers_context() -> None:
    """As a header would carry it; without an active span there is none."""
    from opentelemetry import trace

    assert tracing.current_traceparent() is None
    context = trace.SpanContext(0xABC, 0xDEF, False, trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        assert tracing.current_traceparent() == f"00-{0xABC:032x}-{0xDEF:016x}-01"


@contextlib.contextmanager
def exporter(endpoint: str) -> Iterator[Exporter]:
    made = Exporter(endpoint, "here")
    done = threading.Event()
    try:
        yield made
    finally:
        made.close(done)
        assert done.wait(20)


def spans(count: int) -> list[Span]:
    now_ns = time.time_ns()
    return [Span("part", n + 1, 7, now_ns, now_ns + 5, {"metamusesd.n": n, "list": ["a"]}) for n in range(count)]


def test_spans_arrive_with_all_they_have() -> None:
    """Ids, parent, times, attributes, error, and whose they are, at a real receiver."""
    trace, now_ns = Trace(0xABC, 0xDEF, True), time.time_ns()
    with Collector() as collector:
        with exporter(collector.endpoint) as out:
            out.put(trace, [Span("chat m", 9, 0xDEF, now_ns, now_ns + 10, {}, "dead", entry=True), *spans(1)])
        found = collector.wait("chat m", "part")
    whole, part = found["chat m"], found["part"]
    assert (whole.trace, whole.id, whole.parent, whole.error) == (f"{0xABC:032x}", f"{9:016x}", f"{0xDEF:016x}", "dead")
    assert (whole.start_ns, whole.end_ns) == (now_ns, now_ns + 10)
    assert (part.parent, part.facts) == (f"{7:016x}", {"metamusesd.n": 0, "list": ["a"]}) and not part.error
    assert collector.resource["service.name"] == "metamusesd" and collector.resource["service.instance.id"] == "here"


def test_a_dead_collector_costs_spans_and_nobody_waits(capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody listens: each call takes microseconds, what waits is bounded, every span is counted in the end, the reason
    is known, and the library writes nothing to standard error by itself."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with exporter(endpoint) as out:
            started_s = time.monotonic()
            for _ in range(100):
                out.put(Trace(1, 0, True), spans(100))
            assert time.monotonic() - started_s < 5.0
            assert out.dropped >= 10_000 - tracing.MOST_WAITING - tracing.BATCH * 4
    lost, problem = out.lost()
    assert lost == 10_000 and problem
    assert capfd.readouterr().err == ""


def test_without_the_library_the_option_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ConfigError with the option and the remedy."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"telemetry\.otlp_endpoint: .*pip install metamusesd\[otel\]"):
        Exporter("http://127.0.0.1:1", "here")
