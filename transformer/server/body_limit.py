"""A limit on the size of request bodies, enforced while they arrive."""

import asyncio
import contextlib
from collections.abc import Sequence

from transformer.errors import CompressedBody, TooLarge, quoted
from transformer.server.client_connection import while_needed
from transformer.server.fast_path import App, Message, Receive, Send, content_length


class BodyLimit:
    """ASGI middleware that refuses a body as soon as it is too long, or at once if it is compressed.

    If a response precedes the end of the body, the rest of the body is read and discarded: closing a
    connection with unread bytes resets it, and the client may lose the response.

    Parameters
    ----------
    app
        The ASGI application behind it.
    max_bytes
        Maximum bytes of a body.
    linger_s
        Seconds for which the rest of an answered body is discarded.
    """

    def __init__(self, app: App, max_bytes: int, linger_s: float) -> None:
        self.app = app
        self._max_bytes = max_bytes
        self._linger_s = linger_s

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        received = 0
        ended = scope["type"] != "http"
        headers = scope.get("headers", ())
        # A client that sent Expect may still send the body, or may not.
        closes = any(name == b"expect" for name, _ in headers)

        async def read() -> Message:
            nonlocal ended
            message = await receive()
            ended = not message.get("more_body", False)
            return message

        async def limited() -> Message:
            nonlocal received
            if not received:
                self._check_headers(headers)
            message = await read()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large("more")
            return message

        async def send_then_drain(message: Message) -> None:
            if message["type"] == "http.response.start" and closes and not ended:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if last and not ended:
                await send({**message, "more_body": True})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._linger_s):
                        while not ended:
                            await read()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await while_needed(scope, self.app(scope, limited, send_then_drain))

    def _check_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Refuse a body by its headers, before any of it is read."""
        codings = [value for name, value in headers if name == b"content-encoding"]
        for coding in codings:
            if coding.strip().lower() != b"identity":
                text = quoted(coding.decode("latin-1"))
                raise CompressedBody(f"content-encoding: must be identity, got {text}")
        announced = content_length(dict(headers)) or 0
        if announced > self._max_bytes:
            raise self._too_large(announced)

    def _too_large(self, size: object) -> TooLarge:
        return TooLarge(f"body: limit {self._max_bytes} bytes, got {size}")
