"""ASGI middleware that limits the size of request bodies."""

import asyncio
import contextlib
from collections.abc import Sequence

from transformer.errors import CompressedBody, TooLarge, quoted
from transformer.headers import check_sent_once
from transformer.server.byte_budget import ByteBudget
from transformer.server.client_connection import while_needed
from transformer.server.fast_path import App, Message, Receive, Send, content_length


class BodyLimit:
    """Refuses a request's body while it comes in, as soon as it is too long, or at once if it is compressed.

    An answer that comes before the body's end is followed by the rest of the body, which is thrown away: to
    close a connection on bytes that nobody has read resets it, and takes the answer away from the client.

    Parameters
    ----------
    app
        The ASGI application behind it.
    max_bytes
        Bytes that a body may have.
    room
        What is taken for bodies that have come.
    linger_s
        Seconds for which the rest of a body is read that has been answered already.
    """

    def __init__(self, app: App, max_bytes: int, room: ByteBudget, linger_s: float) -> None:
        self.app = app
        self._max_bytes = max_bytes
        self._room = room
        self._linger_s = linger_s

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        received = taken = 0
        ended = scope["type"] != "http"
        headers = scope.get("headers", ())
        # Whether the body comes yet that such a client has announced, nobody here can tell.
        closes = any(name == b"expect" for name, _ in headers)

        async def read() -> Message:
            nonlocal ended
            message = await receive()
            ended = not message.get("more_body", False)
            return message

        async def limited() -> Message:
            nonlocal received, taken
            if not received:
                self._check_head(headers)
            message = await read()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            if ended and not taken:
                taken = self._room.take(received)
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

        try:
            await while_needed(scope, self.app(scope, limited, send_then_drain))
        finally:
            self._room.give_back(taken)

    def _check_head(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """See what is wrong with a request before any of its body has come."""
        by_name = dict(headers)
        encoding = by_name.get(b"content-encoding", b"identity").decode("latin-1")
        if encoding.lower() != "identity":
            raise CompressedBody(f"content-encoding: must be identity, got {quoted(encoding)}")
        check_sent_once(name.decode("latin-1") for name, _ in headers)
        if (content_length(by_name) or 0) > self._max_bytes:
            raise self._too_large()

    def _too_large(self) -> TooLarge:
        return TooLarge(f"a request's body may have {self._max_bytes} bytes")
