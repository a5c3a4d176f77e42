"""A client's connection: uvicorn's, with answers in one piece, and limits on a client's time."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

#: Seconds from a connection's begin, or from a request's first byte, until the whole request must be there.
REQUEST_TIMEOUT_S = 30
#: Bytes that a request's line and headers may have, give or take what one read brings.
MAX_HEAD_BYTES = 64 * 1024
#: ASGI extension under which a request finds its connection.
CONNECTION = "transformer.connection"


class RestConnection(HttpToolsProtocol):
    """uvicorn's protocol over a transport that sends the head of an answer together with its body.

    uvicorn lets a request go on whose client has gone; here it can be given up. It waits for ever for one
    that does not come to its end, and keeps headers of any length; here they are answered with 408 and 431.
    """

    lost = False
    _task: asyncio.Task[object] | None = None
    #: Whether a request has begun and not come to its end.
    _coming = True
    _head_bytes = 0
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(InOnePiece(transport, self.loop))  # type: ignore[arg-type]
        self._patience = self.loop.call_later(REQUEST_TIMEOUT_S, self._time_out)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        if not self._coming:
            return
        if self._patience is None:
            self._patience = self.loop.call_later(REQUEST_TIMEOUT_S, self._time_out)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"headers: at most {MAX_HEAD_BYTES} bytes"
                )

    @property
    def _in_head(self) -> bool:
        """Whether the request that is coming has not been begun to be answered."""
        return self.cycle is None or self.cycle.scope is not self.scope

    def on_message_begin(self) -> None:
        """Begin a request; see `httptools.HttpRequestParser`."""
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]
        self._coming = True
        self._head_bytes = 0

    def on_message_complete(self) -> None:
        """See `httptools.HttpRequestParser`."""
        super().on_message_complete()
        self._coming = False
        self._wait_no_longer()

    def _wait_no_longer(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _time_out(self) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the whole request must come within {REQUEST_TIMEOUT_S} s")

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        """Close the connection; with an answer, unless another one is due or begun."""
        cycle = self.cycle
        if cycle is None or (cycle.response_complete if self._in_head else not cycle.response_started):
            body = b'{"error":"%b"}' % text.encode()
            self.transport.write(
                b"%bcontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
                % (STATUS_LINE[status], len(body), body)
            )
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self.lost = True
        self._wait_no_longer()
        if self._task is not None:
            self._task.cancel()

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Give up what runs inside when the connection is lost.

        Raises
        ------
        ConnectionResetError
            When it is.
        """
        self._task = asyncio.current_task()
        try:
            yield
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
