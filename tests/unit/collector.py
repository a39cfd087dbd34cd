"""A collector of OpenTelemetry on loopback: takes OTLP over HTTP, keeps every span decoded."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status

PATIENCE_S = 20.0


@dataclass
class Got:
    """One span as it arrived."""

    name: str
    trace: str
    id: str
    parent: str
    start_ns: int
    end_ns: int
    error: str
    facts: dict[str, Any] = field(default_factory=dict)


class Collector:
    """Use it as a context manager. `wait` returns when enough has come."""

    def __init__(self) -> None:
        self.spans: list[Got] = []
        self.resource: dict[str, Any] = {}
        self.changed = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                collector._take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Collector:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self.changed:
            for group in request.resource_spans:
                self.resource = _facts(group.resource.attributes)
                self.spans += [_got(span) for scope in group.scope_spans for span in scope.spans]
            self.changed.notify_all()

    def wait(self, *names: str) -> dict[str, Got]:
        """Until a span of each of these names has come, two of one that is named twice; the last one of each name."""

        def found() -> dict[str, Got]:
            return {span.name: span for span in self.spans}

        def there() -> bool:
            return Counter(names) <= Counter(span.name for span in self.spans)

        with self.changed:
            assert self.changed.wait_for(there, PATIENCE_S), [span.name for span in self.spans]
            return found()


def _got(span: Any) -> Got:
    error = span.status.message if span.status.code == Status.STATUS_CODE_ERROR else ""
    return Got(
        span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), span.start_time_unix_nano,
        span.end_time_unix_nano, error, _facts(span.attributes),
    )  # fmt: skip


def _facts(attributes: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {each.key: plain(each.value) for each in attributes}
