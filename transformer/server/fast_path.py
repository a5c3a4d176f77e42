"""The short way for predictions: two routes answered before KServe's application sees them.

What is plain is read, scored and written here, each once; all that is unusual (CloudEvents, other content
types, other models, other methods) goes on to KServe's own handlers. Both ways give the same answers.
"""

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from time import perf_counter
from typing import Any

from kserve.metrics import POST_HIST_TIME, PRE_HIST_TIME, PREDICT_HIST_TIME, get_labels
from starlette.responses import JSONResponse, Response

from transformer.errors import ServiceError
from transformer.headers import forwarded_scope_headers
from transformer.protocols import v2
from transformer.protocols.json_body import parse_json
from transformer.server.client_connection import CONNECTION, ClientConnection
from transformer.server.kserve_model import VERSION_HEADER, TransformerModel

logger = logging.getLogger("kserve.transformer")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Coroutine[Any, Any, None]]
#: Of a request, names in lower case.
Headers = Mapping[bytes, bytes]

#: What a body may be called that is plain; the binary extension's has another name.
_JSON = {None, b"application/json"}
_V2_TYPES = {*_JSON, b"application/octet-stream"}
_VERSION_HEADER = VERSION_HEADER.encode()
_JSON_LENGTH_HEADER = v2.JSON_LENGTH_HEADER.encode()
#: A key that makes a JSON object a CloudEvent.
_CLOUD_EVENT = "specversion"


class _Unusual(Exception):
    """A body that KServe's own handler has to read."""


class FastPath:
    """Answers plain predictions of one model, and hands everything else on.

    Parameters
    ----------
    app
        KServe's ASGI application.
    model
        What answers.
    error_response
        Makes a response of an error.
    max_request_bytes
        Bytes of the longest body that is read here.
    """

    def __init__(
        self,
        app: App,
        model: TransformerModel,
        error_response: Callable[[ServiceError], Response],
        max_request_bytes: int,
    ) -> None:
        self._app = app
        self._model = model
        self._max_request_bytes = max_request_bytes
        self._error_response = error_response
        self._ways = {
            f"/v1/models/{model.name}:predict": (_JSON, self._v1),
            f"/v2/models/{model.name}/infer": (_V2_TYPES, self._v2),
        }
        labels = get_labels(model.name)
        self._pre, self._predict, self._post = (
            histogram.labels(**labels) for histogram in (PRE_HIST_TIME, PREDICT_HIST_TIME, POST_HIST_TIME)
        )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection's scope."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self._ways:
            await self._app(scope, receive, send)
            return
        content_types, way = self._ways[scope["path"]]
        headers = dict(scope["headers"])
        if len(headers) < len(scope["headers"]) or not self._is_plain(headers, content_types):
            await self._app(scope, receive, send)
            return
        connection: ClientConnection | None = scope.get("extensions", {}).get(CONNECTION)
        body = b""
        taken = 0
        try:
            body = await _body(receive)
            taken = self._model.room.take(len(body))
            answer = way(body, headers)
            content, answer_headers = await (answer if connection is None else connection.needed(answer))
        except _Unusual:
            await self._app(scope, _replaying(body, receive), send)
            return
        except ConnectionResetError:
            # Nobody is left to answer.
            return
        except ServiceError as error:
            await self._error_response(error)(scope, receive, send)
            return
        except Exception:
            logger.exception("a prediction failed")
            await JSONResponse({"error": "internal error"}, 500)(scope, receive, send)
            return
        finally:
            self._model.room.give_back(taken)
        await send({"type": "http.response.start", "status": 200, "headers": answer_headers})
        await send({"type": "http.response.body", "body": content})

    def _is_plain(self, headers: Headers, content_types: set[bytes | None]) -> bool:
        length = content_length(headers)
        return (
            length is not None
            and length <= self._max_request_bytes
            and headers.get(b"content-type") in content_types
            and b"content-encoding" not in headers
            and not any(name.startswith(b"ce-") for name in headers)
        )

    async def _v1(self, body: bytes, headers: Headers) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        start = perf_counter()
        payload = parse_json(body)
        if isinstance(payload, dict) and _CLOUD_EVENT in payload:
            raise _Unusual
        request = self._model.decode_v1(payload)
        decoded = perf_counter()
        prediction = await self._model.scorer.predict(
            request.candidates, forwarded_scope_headers(headers.items())
        )
        scored = perf_counter()
        content = request.encode(prediction)
        self._observe(start, decoded, scored, perf_counter())
        return content, [
            (_VERSION_HEADER, prediction.version.encode()),
            (b"content-length", b"%d" % len(content)),
            (b"content-type", b"application/json"),
        ]

    async def _v2(self, body: bytes, headers: Headers) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        start = perf_counter()
        json_length = headers.get(_JSON_LENGTH_HEADER)
        request = self._model.decode_v2(body, None if json_length is None else json_length.decode("latin-1"))
        decoded = perf_counter()
        prediction = await self._model.scorer.predict(
            request.candidates, forwarded_scope_headers(headers.items())
        )
        scored = perf_counter()
        content, content_headers = v2.encode(request.answer(prediction))
        self._observe(start, decoded, scored, perf_counter())
        return content, [
            (_VERSION_HEADER, prediction.version.encode()),
            *((name.encode(), value.encode()) for name, value in content_headers.items()),
            (b"content-length", b"%d" % len(content)),
        ]

    def _observe(self, start: float, decoded: float, scored: float, encoded: float) -> None:
        self._pre.observe(decoded - start)
        self._predict.observe(scored - decoded)
        self._post.observe(encoded - scored)


def content_length(headers: Headers) -> int | None:
    """Bytes that a request's body is to have; None if its head does not say."""
    digits = headers.get(b"content-length", b"")
    if not digits.isdigit():
        return None
    # Python reads no number of thousands of digits, and zeros in front are none.
    return int(digits.lstrip(b"0")[:20] or b"0")


async def _body(receive: Receive) -> bytes:
    """The request's whole body.

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


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read already, and then what comes after it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
