"""Spans: one for each request, and one for each call to the predictor with links to the requests it served.

No attribute holds a candidate's value or an error's message, which may repeat one.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from transformer.errors import ServiceError
from transformer.headers import BAGGAGE
from transformer.tracing.operation import Operation

#: Seconds in which the last spans are exported when a server stops.
CLOSE_S = 3.0
_UNNAMED_SERVICE = "unknown_service"
#: gRPC statuses that are the server's fault (OpenTelemetry's conventions for gRPC).
_SERVER_ERRORS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


class Tracing:
    """Traces the requests of one process. Sampling, limits and batches are those of the environment.

    Parameters
    ----------
    exporters
        Where the spans go.
    model_name, max_requests
        As `transformer.tracing.environment.start_tracing`.
    """

    def __init__(self, exporters: Sequence[SpanExporter], model_name: str, max_requests: int) -> None:
        self._exporters = exporters
        self._provider = TracerProvider(
            resource=_resource(model_name),
            span_limits=_limits(max_requests),
            shutdown_on_exit=False,
        )
        for exporter in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("transformer")
        self._propagator = propagate.get_global_textmap()
        #: Headers that hold a trace's context. Baggage is forwarded as it came.
        self._fields = frozenset(self._propagator.fields) - {BAGGAGE}

    def request(self, operation: Operation, headers: Sequence[tuple[str, str]]) -> "RequestTrace":
        """Begin the span of a request, in the trace that its headers name."""
        carrier = {name: value for key, value in headers if (name := key.lower()) != BAGGAGE}
        context = self._propagator.extract(carrier, Context())
        span = self._tracer.start_span(operation.name, context, SpanKind.SERVER, operation.attributes)
        return RequestTrace(self, span, grpc=operation.grpc)

    @contextmanager
    def call(
        self,
        requests: Sequence["RequestTrace"],
        operation: Operation,
        rows: int,
        headers: Mapping[str, str],
    ) -> Iterator[Mapping[str, str]]:
        """Trace one call to the predictor, and yield its headers: those given, in the call's own context.

        The call belongs to the trace of its first sampled request. It has links to all sampled requests, and
        the requests of other traces have links to it.
        """
        sampled = [one.span for one in requests if one.span.is_recording()]
        parent = sampled[0] if sampled else requests[0].span
        span = self._tracer.start_span(
            operation.name,
            trace.set_span_in_context(parent, Context()),
            SpanKind.CLIENT,
            {
                **operation.attributes,
                "transformer.requests": len(requests),
                "transformer.rows": rows,
            },
            [Link(one.get_span_context()) for one in sampled],
        )
        for one in sampled[1:]:
            one.add_link(span.get_span_context())
        own = {name: value for name, value in headers.items() if name not in self._fields}
        self._propagator.inject(own, trace.set_span_in_context(span, Context()))
        try:
            yield own
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR))
            raise
        else:
            _set_status(span, HTTPStatus.OK.value, "OK", grpc=operation.grpc)
        finally:
            span.end()

    async def close(self) -> None:
        """Export the spans that have ended; those of a collector that does not answer are lost."""
        closing = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        await asyncio.wait([closing], timeout=CLOSE_S)
        if not closing.done():
            for exporter in self._exporters:
                exporter.shutdown()
        await closing


class RequestTrace:
    """The trace of one request in progress.

    Attributes
    ----------
    tracing
        Traces its calls to the predictor.
    span
        Its span.
    """

    __slots__ = ("_grpc", "span", "tracing")

    def __init__(self, tracing: Tracing, span: Span, *, grpc: bool) -> None:
        self.tracing = tracing
        self.span = span
        self._grpc = grpc

    def names_version(self, operation: Operation) -> None:
        """Note that the request's path names a version."""
        self.span.update_name(operation.name)
        self.span.set_attributes(operation.attributes)

    def answered(self, version: str, rows: int) -> None:
        """End the span of an answered request."""
        self.span.set_attribute("transformer.version", version)
        self.span.set_attribute("transformer.candidates", rows)
        _set_status(self.span, HTTPStatus.OK.value, "OK", grpc=self._grpc)
        self.span.end()

    def failed(self, error: BaseException) -> None:
        """End the span of a request that ends with an error."""
        status, code = HTTPStatus.INTERNAL_SERVER_ERROR, "UNKNOWN"
        if isinstance(error, ServiceError):
            status, code = error.status, error.grpc_code
        _set_status(self.span, status.value, code, grpc=self._grpc)
        self.span.end()

    def abandoned(self) -> None:
        """End the span of a request that gets no answer, unless it has ended."""
        if self.span.is_recording():
            self.span.set_attribute("error.type", "cancelled")
            self.span.end()


def _set_status(span: Span, status: int, code: str, *, grpc: bool) -> None:
    """Set the status of a response: the HTTP status, or the gRPC code."""
    if grpc:
        span.set_attribute("rpc.response.status_code", code)
        failed, is_ours = code != "OK", code in _SERVER_ERRORS
    else:
        span.set_attribute("http.response.status_code", status)
        failed = is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    if failed:
        span.set_attribute("error.type", code if grpc else str(status))
    if is_ours:
        span.set_status(Status(StatusCode.ERROR))


def _resource(model_name: str) -> Resource:
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith(_UNNAMED_SERVICE):
        resource = resource.merge(Resource({SERVICE_NAME: f"{model_name}-transformer"}))
    return resource


def _limits(max_requests: int) -> SpanLimits:
    """Return the limits of the environment; unless it limits links, a call has links to all its requests."""
    limited = "OTEL_SPAN_LINK_COUNT_LIMIT" in os.environ
    return SpanLimits() if limited else SpanLimits(max_links=max_requests)
