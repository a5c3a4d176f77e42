"""Limits on request bodies while they arrive: on the size of each, and on the large ones of all clients."""

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any

from transformer.errors import CompressedBody, TooLarge, quoted
from transformer.server.asgi import MAX_UNREAD, App, Message, Receive, Send, content_length
from transformer.server.client_connection import CONNECTION, ClientConnection
from transformer.server.fair_reader import FairReader


class BodyLimit:
    """ASGI middleware that refuses a body as soon as it is too long, or at once if it is compressed.

    A body of more than `MAX_UNREAD` bytes waits for its turn, and the application gets it in one message.

    If a response precedes the end of the body, the rest of the body is read and discarded: closing a
    connection with unread bytes resets it, and the client may lose the response.

    Parameters
    ----------
    app
        The ASGI application behind it.
    reader
        Reads large bodies.
    max_bytes
        Maximum bytes of a body.
    linger_s
        Seconds for which the rest of an answered body is discarded.
    """

    def __init__(self, app: App, reader: FairReader, max_bytes: int, linger_s: float) -> None:
        self.app = app
        self.reader = reader
        self.max_bytes = max_bytes
        self.linger_s = linger_s

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = _Request(self, scope, receive, send)
        await _while_needed(scope, self.app(scope, request.receive, request.send))


class _Request:
    """One request whose body is limited: what the application receives and sends."""

    def __init__(self, limit: BodyLimit, scope: Message, receive: Receive, send: Send) -> None:
        self._limit = limit
        self._headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self._connection = scope.get("extensions", {}).get(CONNECTION)
        self._receive = receive
        self._send = send
        self._received = 0
        self._ended = False

    async def receive(self) -> Message:
        if not self._received:
            self._check_headers()
        message = await self._counted()
        if self._ended or self._received <= MAX_UNREAD:
            return message
        return await self._limit.reader.read(self._connection, lambda: self._with_rest(message))

    async def send(self, message: Message) -> None:
        # A client that sent Expect may still send the body, or may not.
        closes = any(name == b"expect" for name, _ in self._headers)
        if message["type"] == "http.response.start" and closes and not self._ended:
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if last and not self._ended:
            await self._send({**message, "more_body": True})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limit.linger_s):
                    while not self._ended:
                        await self._part()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _part(self) -> Message:
        message = await self._receive()
        self._ended = not message.get("more_body", False)
        return message

    async def _counted(self) -> Message:
        message = await self._part()
        self._received += len(message.get("body", b""))
        if self._received > self._limit.max_bytes:
            raise self._too_large("more")
        return message

    async def _with_rest(self, message: Message) -> Message:
        """Return a message with all that follows it, or the one that says that the client has gone."""
        # Not a list, whose parts of a few bytes could take thirty times their bytes.
        body = bytearray(message["body"])
        while not self._ended:
            message = await self._counted()
            if message["type"] != "http.request":
                return message
            body += message.get("body", b"")
        return {**message, "body": bytes(body)}

    def _check_headers(self) -> None:
        """Refuse a body by its headers, before any of it is read."""
        for coding in (value for name, value in self._headers if name == b"content-encoding"):
            if coding.strip().lower() != b"identity":
                text = quoted(coding.decode("latin-1"))
                raise CompressedBody(f"content-encoding: must be identity, got {text}")
        announced = content_length(dict(self._headers)) or 0
        if announced > self._limit.max_bytes:
            raise self._too_large(announced)

    def _too_large(self, size: object) -> TooLarge:
        return TooLarge(f"body: limit {self._limit.max_bytes} bytes, got {size}")


async def _while_needed(scope: Message, answering: Coroutine[Any, Any, None]) -> None:
    """Answer a request, and cancel that silently when no client waits for it any more."""
    connection: ClientConnection | None = scope.get("extensions", {}).get(CONNECTION)
    if connection is None:
        await answering
        return
    try:
        await connection.needed(answering)
    except ConnectionResetError:
        if not connection.lost:
            raise
