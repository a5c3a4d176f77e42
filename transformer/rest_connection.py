"""A client's connection: uvicorn's, with each answer written in one piece."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class RestConnection(HttpToolsProtocol):
    """uvicorn's protocol over a transport that sends the head of an answer together with its body."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(InOnePiece(transport, self.loop))  # type: ignore[arg-type]


class InOnePiece:
    """A transport that holds back an answer's head for its body, until the event loop's next turn at most.

    uvicorn writes the two apart. Each write costs a system call here and wakes the client once more,
    together a tenth of what a small answer takes.

    Parameters
    ----------
    transport
        Where all of it goes.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._call_soon = loop.call_soon
        self._head = b""

    def write(self, data: bytes) -> None:
        """Send, or hold what begins an answer."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif data.startswith(b"HTTP/1."):
            self._head = data
            self._call_soon(self._flush)
        else:
            self._transport.write(data)

    def _flush(self) -> None:
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Close when what is held has been sent."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever it is)
        """All else is the transport's own."""
        return getattr(self._transport, name)
