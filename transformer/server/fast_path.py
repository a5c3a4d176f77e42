"""The fast path: plain predictions, which their connection answers without an ASGI task.

Anything unusual (CloudEvents, other content types, models or methods, large bodies) goes on to the
application's routes, which give the same answers.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from starlette.responses import JSONResponse, Response

from transformer.bundle.prediction import Prediction, Request
from transformer.errors import ServiceError
from transformer.headers import VERSION_HEADER, forwardable
from transformer.monitoring.monitor import V1_PREDICT, V2_INFER, Kind
from transformer.protocols import v2
from transformer.protocols.json_body import JSON_HEADERS, parse_json
from transformer.protocols.v1 import V1Request
from transformer.server.asgi import MAX_UNREAD, content_length
from transformer.server.handler import Handler, InProgress, Unusual
from transformer.server.uvicorn_internals import STATUS_LINE

logger = logging.getLogger("kserve.transformer")

#: A request's headers, names in lower case.
Headers = Mapping[bytes, bytes]
_ResponseHeaders = list[tuple[bytes, bytes]]

#: Content types of a plain JSON body, and of a V2 body, which may have binary data behind the JSON.
_JSON = frozenset({None, b"application/json"})
_V2_TYPES = _JSON | {b"application/octet-stream"}
_VERSION_HEADER = VERSION_HEADER.encode()
_JSON_LENGTH_HEADER = v2.JSON_LENGTH_HEADER.encode()
#: Headers of requests that the application must read.
_UNUSUAL = frozenset({b"content-encoding", b"expect", b"transfer-encoding", b"upgrade"})
#: A key that makes a JSON object a CloudEvent.
_CLOUD_EVENT = "specversion"


class PlainRequest(Request, Protocol):
    """A decoded REST request."""

    def encode(self, prediction: Prediction) -> tuple[bytes, dict[str, str]]:
        """Return body and headers of the response."""


class _Route(NamedTuple):
    """A path that plain requests are sent to."""

    kind: Kind
    content_types: frozenset[bytes | None]
    decode: Callable[[bytes, str | None], PlainRequest]


class PlainHead(NamedTuple):
    """The head of a plain request, without what is not needed to answer it.

    Attributes
    ----------
    kind
        The request's kind, for the metrics.
    decode
        Decodes a body, given the length of its JSON.
    json_length
        Value of the header with that length; None if it was not sent.
    forwardable
        The headers that may go to the predictor.
    body_bytes
        Length of the body.
    """

    kind: Kind
    decode: Callable[[bytes, str | None], PlainRequest]
    json_length: str | None
    forwardable: list[tuple[str, str]]
    body_bytes: int


class FastPath:
    """Finds requests for plain predictions of one model, and makes the responses to them.

    Parameters
    ----------
    handler
        Answers the requests.
    error_response
        Makes a response of an error.
    max_request_bytes
        Maximum bytes of a body.

    Attributes
    ----------
    handler
        As the parameter.
    """

    def __init__(
        self,
        handler: Handler,
        error_response: Callable[[ServiceError], Response],
        max_request_bytes: int,
    ) -> None:
        self.handler = handler
        self._error_response = error_response
        self._max_bytes = min(max_request_bytes, MAX_UNREAD)
        self._routes = {
            f"/v1/models/{handler.name}:predict".encode(): _Route(V1_PREDICT, _JSON, self._decode_v1),
            f"/v2/models/{handler.name}/infer".encode(): _Route(V2_INFER, _V2_TYPES, handler.decode_v2),
        }
        self._default_headers: _ResponseHeaders = []
        #: Heads of JSON responses with these headers, by version, up to the length.
        self._success_heads: dict[str, bytes] = {}

    def plain_head(self, target: bytes, headers: Headers, sent: int) -> PlainHead | None:
        """Return the head of a plain POST request; None for a request that is not plain.

        Parameters
        ----------
        target
            The request's target.
        headers
            Its headers.
        sent
            Number of headers that were sent; more than `headers` if some were repeated.
        """
        route = self._routes.get(target)
        if route is None or len(headers) < sent or headers.get(b"content-type") not in route.content_types:
            return None
        length = content_length(headers)
        if length is None or length > self._max_bytes or not _UNUSUAL.isdisjoint(headers):
            return None
        # Faster than a loop over the names.
        if b"\nce-" in b"\n".join((b"", *headers)):
            return None
        json_length = headers.get(_JSON_LENGTH_HEADER)
        return PlainHead(
            route.kind,
            route.decode,
            None if json_length is None else json_length.decode("latin-1"),
            forwardable(headers.items()),
            length,
        )

    def success(self, progress: InProgress[PlainRequest], default_headers: _ResponseHeaders) -> bytes:
        """Return the response to a request whose prediction is there."""
        (content, headers), version = self.handler.end(progress, progress.request.encode)
        if default_headers is not self._default_headers:
            # uvicorn makes another list each second, for the date.
            self._default_headers = default_headers
            self._success_heads.clear()
        head = self._success_heads.get(version) if headers is JSON_HEADERS else None
        if head is None:
            own = [(name.encode(), value.encode()) for name, value in headers.items()]
            lines = _lines([*default_headers, (_VERSION_HEADER, version.encode()), *own])
            head = STATUS_LINE[200] + lines + b"content-length: "
            if headers is JSON_HEADERS:
                self._success_heads[version] = head
        return b"%b%d\r\n\r\n%b" % (head, len(content), content)

    def failure(self, error: BaseException, default_headers: _ResponseHeaders) -> bytes:
        """Return the response to a request that ends with an error."""
        if isinstance(error, ServiceError):
            response = self._error_response(error)
        else:
            logger.error("a prediction failed", exc_info=error)
            response = JSONResponse({"error": "internal error"}, 500)
        headers = _lines([*default_headers, *response.raw_headers])
        return b"%b%b\r\n%b" % (STATUS_LINE[response.status_code], headers, bytes(response.body))

    def _decode_v1(self, body: bytes, _: str | None) -> V1Request:
        payload = parse_json(body)
        if isinstance(payload, dict) and _CLOUD_EVENT in payload:
            raise Unusual
        return self.handler.decode_v1(payload)


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])
