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
from transformer.protocols.json_body import parse_json
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


class Decoder(NamedTuple):
    """Decodes plain requests of one kind, given a body and its headers."""

    kind: Kind
    decode: Callable[[bytes, Headers], PlainRequest]


class FastPath:
    """Finds plain predictions of one model, and answers them.

    Parameters
    ----------
    handler
        Answers the requests.
    error_response
        Makes a response of an error.
    max_request_bytes
        Maximum bytes of a body.
    """

    def __init__(
        self,
        handler: Handler,
        error_response: Callable[[ServiceError], Response],
        max_request_bytes: int,
    ) -> None:
        self._handler = handler
        self._error_response = error_response
        self._max_bytes = min(max_request_bytes, MAX_UNREAD)
        self._routes: dict[bytes, tuple[frozenset[bytes | None], Decoder]] = {
            f"/v1/models/{handler.name}:predict".encode(): (_JSON, Decoder(V1_PREDICT, self._decode_v1)),
            f"/v2/models/{handler.name}/infer".encode(): (_V2_TYPES, Decoder(V2_INFER, self._decode_v2)),
        }
        self._default_headers: _ResponseHeaders = []
        self._success_head = b""

    def route(self, target: bytes, headers: Headers, sent: int) -> Decoder | None:
        """Return the decoder of a plain POST request; None for a request that is not plain.

        Parameters
        ----------
        target
            The request's target.
        headers
            Its headers.
        sent
            Number of headers that were sent; more than `headers` if some were repeated.
        """
        content_types, decoder = self._routes.get(target, _NO_ROUTE)
        if decoder is None or len(headers) < sent or headers.get(b"content-type") not in content_types:
            return None
        length = content_length(headers)
        if length is None or length > self._max_bytes or not _UNUSUAL.isdisjoint(headers):
            return None
        # Faster than a loop over the names.
        return None if b"\nce-" in b"\n".join((b"", *headers)) else decoder

    def begin(self, decoder: Decoder, body: bytes, headers: Headers) -> InProgress[PlainRequest]:
        """Begin to answer a request; see `Handler.begin`.

        Raises
        ------
        Unusual
            If the application must read the body.
        ServiceError
            If it ends without a prediction already.
        """
        forward = forwardable(headers.items())
        return self._handler.begin(decoder.kind, lambda: decoder.decode(body, headers), forward, len(body))

    def end(self, progress: InProgress[PlainRequest], default_headers: _ResponseHeaders) -> bytes:
        """Return the response to a request whose prediction is there."""
        (content, headers), version = self._handler.end(progress, progress.request.encode)
        if default_headers is not self._default_headers:
            # uvicorn makes another list each second, for the date.
            self._default_headers = default_headers
            self._success_head = STATUS_LINE[200] + _lines(default_headers) + _VERSION_HEADER + b": "
        own = "".join([f"\r\n{name}: {value}" for name, value in headers.items()])
        return b"%b%b\r\ncontent-length: %d%b\r\n\r\n%b" % (
            self._success_head,
            version.encode(),
            len(content),
            own.encode(),
            content,
        )

    def abandon(self, progress: InProgress[PlainRequest]) -> None:
        """Drop a request whose client has gone."""
        self._handler.abandon(progress)

    def fail(self, progress: InProgress[PlainRequest], error: BaseException) -> None:
        """Drop a request that ends with an error."""
        self._handler.fail(progress, error)

    def failure(self, error: BaseException, default_headers: _ResponseHeaders) -> bytes:
        """Return the response to a request that ends with an error."""
        if isinstance(error, ServiceError):
            response = self._error_response(error)
        else:
            logger.error("a prediction failed", exc_info=error)
            response = JSONResponse({"error": "internal error"}, 500)
        headers = _lines([*default_headers, *response.raw_headers])
        return b"%b%b\r\n%b" % (STATUS_LINE[response.status_code], headers, bytes(response.body))

    def _decode_v1(self, body: bytes, _: Headers) -> V1Request:
        payload = parse_json(body)
        if isinstance(payload, dict) and _CLOUD_EVENT in payload:
            raise Unusual
        return self._handler.decode_v1(payload)

    def _decode_v2(self, body: bytes, headers: Headers) -> v2.V2Request:
        length = headers.get(_JSON_LENGTH_HEADER)
        return self._handler.decode_v2(body, None if length is None else length.decode("latin-1"))


_NO_ROUTE: tuple[frozenset[bytes | None], Decoder | None] = (_JSON, None)


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])
