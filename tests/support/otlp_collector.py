"""An OpenTelemetry collector that keeps what it receives: OTLP over HTTP, in protobuf."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span


class OtlpCollector:
    """A running collector.

    Attributes
    ----------
    received
        Spans by the resource that sent them.
    endpoint
        Value of ``OTEL_EXPORTER_OTLP_ENDPOINT``.
    """

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.received: list[ResourceSpans] = []

    @property
    def spans(self) -> list[Span]:
        """All spans."""
        return [span for one in self.received for scope in one.scope_spans for span in scope.spans]

    def resources(self, name: str) -> set[str]:
        """Return the values of one attribute of the resources that sent spans."""
        return {
            attribute.value.string_value or str(attribute.value.int_value)
            for one in self.received
            for attribute in one.resource.attributes
            if attribute.key == name
        }


@contextmanager
def running_collector() -> Iterator[OtlpCollector]:
    """Listen on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            known = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            if known:
                collector.received.extend(ExportTraceServiceRequest.FromString(body).resource_spans)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200 if known else 404)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = OtlpCollector(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
