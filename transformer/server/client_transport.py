"""Writing and reading on a client's connection: small responses in one piece, requests one after another."""

import asyncio
from collections import deque
from typing import Any

from transformer.server.uvicorn_internals import FlowControl


class CoalescingTransport:
    """A transport that writes the head of a response together with its body.

    uvicorn writes them separately. Each write costs a system call here and wakes the client once more,
    together a tenth of the time of a small response. A head waits for its body until the event loop's next
    turn at most.

    Parameters
    ----------
    transport
        The transport to write to.

    Attributes
    ----------
    written
        Bytes given to the transport.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._call_soon = loop.call_soon
        self._head = b""
        self.written = 0

    def write(self, data: bytes) -> None:
        """Write data, or keep it for the next write if it is the head of a response."""
        if self._head:
            data = self._head + data
            self._head = b""
        elif data.startswith(b"HTTP/1."):
            self._head = data
            self._call_soon(self._flush)
            return
        self.written += len(data)
        self._transport.write(data)

    def write_whole(self, response: bytes) -> None:
        """Write a complete response."""
        if self._head:
            self._flush()
        self.written += len(response)
        self._transport.write(response)

    def _flush(self) -> None:
        if self._head:
            self.write(b"")

    def write_eof(self) -> None:
        """Close the write end after flushing."""
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Close after flushing."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Return True if the transport is closing; faster than `__getattr__`."""
        return self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (the transport's)
        """Pass everything else on to the transport."""
        return getattr(self._transport, name)


class PipelineFlowControl(FlowControl):
    """Flow control that reads on only when no request waits: the pipeline would grow with every response."""

    def __init__(self, transport: asyncio.Transport, pipeline: deque[Any]) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Read on, unless a request waits."""
        if not self._pipeline:
            super().resume_reading()
