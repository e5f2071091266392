"""A collector of traces: takes OTLP over HTTP, as an operator's does, and keeps what comes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

OK, UNAVAILABLE = 200, 503


@dataclass(frozen=True)
class Span:
    """A span as it arrived; ids are hexadecimal, as in a `traceparent`."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    seconds: float


class Collector:
    """What has arrived so far, and how requests are answered."""

    def __init__(self) -> None:
        self.answer = OK
        self.spans: list[Span] = []
        self.refused = 0

    def take(self, body: bytes) -> int:
        """Take one request."""
        if self.answer != OK:
            self.refused += 1
            return self.answer
        for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {attribute.key: attribute.value.string_value for attribute in sent.resource.attributes}
            self.spans.extend(
                Span(
                    about["service.name"],
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                )
                for scope in sent.scope_spans
                for span in scope.spans
            )
        return OK


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """Yield a collector, and the endpoint at which it listens."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status = collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield collector, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
