"""A client's connection: uvicorn's, with answers in one piece, and given up when the client goes."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

T = TypeVar("T")

#: ASGI extension under which a request finds its connection.
CONNECTION = "transformer.connection"


class RestConnection(HttpToolsProtocol):
    """uvicorn's protocol over a transport that sends the head of an answer together with its body.

    uvicorn lets a request go on whose client has gone; here it can be given up. Relies on what uvicorn 0.54
    does inside: `cycle` is the request that was read last, `_start_asgi_task` begins to answer one.
    """

    lost = False
    _task: asyncio.Task[object] | None = None
    #: The request that is being answered, while others that were sent behind it may be read already.
    _answering: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(InOnePiece(transport, self.loop))  # type: ignore[arg-type]

    def on_message_begin(self) -> None:
        """Begin a request; see `httptools.HttpRequestParser`."""
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 (uvicorn's own)
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self.lost = True
        if self._answering is not None and not self._answering.response_complete:
            # uvicorn marks the last one only, and takes the absence of this one's answer for an error.
            self._answering.disconnected = True
        if self._task is not None:
            self._task.cancel()

    async def needed(self, answer: Coroutine[Any, Any, T]) -> T:
        """Wait for an answer, and give it up when the connection is lost.

        Raises
        ------
        ConnectionResetError
            When it is.
        """
        self._task = asyncio.current_task(self.loop)
        try:
            return await answer
        except asyncio.CancelledError as error:
            if self.lost:
                raise ConnectionResetError from error
            raise
        finally:
            self._task = None


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
