"""The fast path: plain predictions are answered before KServe's application sees them.

Anything unusual (CloudEvents, other content types, models or methods) goes on to the application's routes,
which give the same answers.
"""

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from typing import Any

from starlette.responses import JSONResponse, Response

from transformer.bundle.prediction import Prediction
from transformer.errors import ServiceError
from transformer.headers import VERSION_HEADER, forwardable
from transformer.protocols import v2
from transformer.protocols.json_body import parse_json
from transformer.protocols.v1 import V1Request
from transformer.server.client_connection import CONNECTION, HEADERS, ClientConnection
from transformer.server.handler import Handler

logger = logging.getLogger("kserve.transformer")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Coroutine[Any, Any, None]]
#: A request's headers, names in lower case.
Headers = Mapping[bytes, bytes]
_ResponseHeaders = list[tuple[bytes, bytes]]

#: Maximum bytes of a body that is read at once; a longer one waits for its turn.
MAX_UNREAD = 64 * 2**10
#: Content types of a plain JSON body, and of a V2 body, which may have binary data behind the JSON.
_JSON = {None, b"application/json"}
_V2_TYPES = {*_JSON, b"application/octet-stream"}
_VERSION_HEADER = VERSION_HEADER.encode()
_JSON_LENGTH_HEADER = v2.JSON_LENGTH_HEADER.encode()
#: A key that makes a JSON object a CloudEvent.
_CLOUD_EVENT = "specversion"


class _Unusual(Exception):
    """A body that the application's own routes must read."""


class FastPath:
    """Answers plain predictions of one model, and passes everything else on.

    Parameters
    ----------
    app
        KServe's ASGI application.
    handler
        Answers the requests.
    error_response
        Makes a response of an error.
    max_request_bytes
        Maximum bytes of a body.
    """

    def __init__(
        self,
        app: App,
        handler: Handler,
        error_response: Callable[[ServiceError], Response],
        max_request_bytes: int,
    ) -> None:
        self._app = app
        self._handler = handler
        self._error_response = error_response
        self._max_bytes = min(max_request_bytes, MAX_UNREAD)
        self._routes = {
            f"/v1/models/{handler.name}:predict": (_JSON, self._v1),
            f"/v2/models/{handler.name}/infer": (_V2_TYPES, self._v2),
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self._routes:
            await self._app(scope, receive, send)
            return
        content_types, predict = self._routes[scope["path"]]
        extensions = scope.get("extensions", {})
        headers = extensions.get(HEADERS) or dict(scope["headers"])
        if len(headers) < len(scope["headers"]) or not self._is_plain(headers, content_types):
            await self._app(scope, receive, send)
            return
        connection: ClientConnection | None = extensions.get(CONNECTION)
        body = b""
        try:
            body = await _read(receive)
            answer = predict(body, headers)
            content, answer_headers = await (answer if connection is None else connection.needed(answer))
        except _Unusual:
            await self._app(scope, _replay(body, receive), send)
            return
        except ConnectionResetError:
            # The client has gone.
            return
        except ServiceError as error:
            await self._error_response(error)(scope, receive, send)
            return
        except Exception:
            logger.exception("a prediction failed")
            await JSONResponse({"error": "internal error"}, 500)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": answer_headers})
        await send({"type": "http.response.body", "body": content})

    def _is_plain(self, headers: Headers, content_types: set[bytes | None]) -> bool:
        length = content_length(headers)
        return (
            length is not None
            and length <= self._max_bytes
            and headers.get(b"content-type") in content_types
            and b"content-encoding" not in headers
            # Faster than a loop over the names.
            and b"\nce-" not in b"\n".join((b"", *headers))
        )

    async def _v1(self, body: bytes, headers: Headers) -> tuple[bytes, _ResponseHeaders]:
        def decode() -> V1Request:
            payload = parse_json(body)
            if isinstance(payload, dict) and _CLOUD_EVENT in payload:
                raise _Unusual
            return self._handler.decode_v1(payload)

        content, version = await self._handler.predict(
            decode, V1Request.encode, forwardable(headers.items()), len(body)
        )
        return content, [
            (_VERSION_HEADER, version.encode()),
            (b"content-length", b"%d" % len(content)),
            (b"content-type", b"application/json"),
        ]

    async def _v2(self, body: bytes, headers: Headers) -> tuple[bytes, _ResponseHeaders]:
        length = headers.get(_JSON_LENGTH_HEADER)
        json_length = None if length is None else length.decode("latin-1")
        (content, content_headers), version = await self._handler.predict(
            lambda: self._handler.decode_v2(body, json_length),
            encode_v2,
            forwardable(headers.items()),
            len(body),
        )
        return content, [
            (_VERSION_HEADER, version.encode()),
            *((name.encode(), value.encode()) for name, value in content_headers.items()),
            (b"content-length", b"%d" % len(content)),
        ]


def encode_v2(request: v2.V2Request, prediction: Prediction) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a V2 REST response."""
    return v2.encode(request.answer(prediction))


def content_length(headers: Headers) -> int | None:
    """Return the announced bytes of a request's body; None if there is no valid length."""
    digits = headers.get(b"content-length", b"").rstrip(b" \t")
    if not digits.isdigit():
        return None
    # Python refuses numbers of thousands of digits, and leading zeros do not count.
    return int(digits.lstrip(b"0")[:20] or b"0")


async def _read(receive: Receive) -> bytes:
    """Read a request's whole body.

    Raises
    ------
    ConnectionResetError
        If the client has gone.
    """
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body which was read already."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
