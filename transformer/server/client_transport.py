"""How a client's connection is written to and read from: answers in one piece, requests in their turn."""

import asyncio
from collections import deque
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl


class CoalescingTransport:
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
        #: Bytes that the transport was given.
        self.written = 0

    def write(self, data: bytes) -> None:
        """Send, or hold what begins an answer."""
        if self._head:
            data = self._head + data
            self._head = b""
        elif data.startswith(b"HTTP/1."):
            self._head = data
            self._call_soon(self._flush)
            return
        self.written += len(data)
        self._transport.write(data)

    def _flush(self) -> None:
        if self._head:
            self.write(b"")

    def write_eof(self) -> None:
        """Say that what is held was the last."""
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Close when what is held has been sent."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever it is)
        """All else is the transport's own."""
        return getattr(self._transport, name)


class PipelineFlowControl(FlowControl):
    """Reads on when no request waits any more: else more could come with every answer than was answered."""

    def __init__(self, transport: asyncio.Transport, pipeline: deque[Any]) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Read on, unless a request waits."""
        if not self._pipeline:
            super().resume_reading()
