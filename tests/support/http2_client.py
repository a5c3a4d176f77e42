"""HTTP/2 over a plain socket: a test decides on every frame that it sends, also on those of an attacker."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Iterable
from itertools import count

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_FRAME_HEAD = 9
_MAX_FRAME = 16_384


def grpc_message(content: bytes, *, length: int | None = None, compressed: bool = False) -> memoryview:
    """Return a message as gRPC frames it, with another length than its own if one is given."""
    return memoryview(struct.pack(">BI", compressed, len(content) if length is None else length) + content)


class Http2Connection(asyncio.Protocol):
    """A client's connection. It keeps the server's flow control and reads no responses.

    Parameters
    ----------
    window
        Bytes of each response that the server may send.

    Attributes
    ----------
    ended
        Streams with a response that has ended.
    ready
        Set once the server has sent its settings.
    closed
        Set once the server has closed the connection.
    """

    def __init__(self, window: int = 65_535) -> None:
        self._response_window = window
        self.ended: set[int] = set()
        self.ready = asyncio.Event()
        self.closed = asyncio.Event()
        self._ids = count(1, 2)
        self._received = bytearray()
        self._initial_window = self._window = 65_535
        self._windows: dict[int, int] = {}
        self._changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, self._response_window)
        transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings))

    def connection_lost(self, _: Exception | None) -> None:
        self.closed.set()
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= _FRAME_HEAD:
            length = int.from_bytes(self._received[:3])
            if len(self._received) < _FRAME_HEAD + length:
                return
            kind, flags = self._received[3:5]
            stream = int.from_bytes(self._received[5:9])
            payload = bytes(self._received[_FRAME_HEAD : _FRAME_HEAD + length])
            del self._received[: _FRAME_HEAD + length]
            self._handle(kind, flags, stream, payload)

    def open_stream(self, path: str, *headers: tuple[str, str], end: bool = False) -> int:
        """Send the headers of a gRPC call; return the number of its stream."""
        stream = next(self._ids)
        self._windows[stream] = self._initial_window
        fields: Iterable[tuple[str, str]] = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "a"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *headers,
        )
        block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields)
        flags = _END_HEADERS | (_END_STREAM if end else 0)
        self._transport.write(_frame(_HEADERS, flags, stream, block))
        return stream

    def send(self, stream: int, data: memoryview, *, end: bool = False) -> memoryview:
        """Send as much of the data as the server accepts now; return the rest."""
        while data:
            size = min(len(data), self._window, self._windows[stream], _MAX_FRAME)
            if size <= 0:
                break
            flags = _END_STREAM if end and size == len(data) else 0
            self._transport.write(_frame(_DATA, flags, stream, data[:size]))
            self._window -= size
            self._windows[stream] -= size
            data = data[size:]
        return data

    async def more_may_be_sent(self) -> None:
        """Wait until the server accepts more data, or closes the connection."""
        self._changed.clear()
        await self._changed.wait()

    def close(self) -> None:
        self._transport.abort()

    def _handle(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _WINDOW_UPDATE:
            (more,) = struct.unpack(">I", payload)
            if stream:
                self._windows[stream] = self._windows.get(stream, 0) + more
            else:
                self._window += more
        elif kind == _SETTINGS and not flags & _ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == _INITIAL_WINDOW_SIZE:
                    for one in self._windows:
                        self._windows[one] += value - self._initial_window
                    self._initial_window = value
            self._transport.write(_frame(_SETTINGS, _ACK, 0))
            self.ready.set()
        elif kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            self.ended.add(stream)
        elif kind == _PING and not flags & _ACK:
            self._transport.write(_frame(_PING, _ACK, 0, payload))
        self._changed.set()


@contextlib.asynccontextmanager
async def http2_connection(port: int, window: int = 65_535) -> AsyncIterator[Http2Connection]:
    """Connect to a port of this machine. The server may send `window` bytes of each response."""
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Http2Connection(window), "127.0.0.1", port
    )
    try:
        yield connection
    finally:
        connection.close()


def _frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    return b"".join((len(payload).to_bytes(3), struct.pack(">BBI", kind, flags, stream), payload))


def _text(value: str) -> bytes:
    """Return a string literal of HPACK, without Huffman coding."""
    data = value.encode()
    length = len(data)
    if length < 0x7F:
        return bytes([length]) + data
    length -= 0x7F
    prefix = bytearray(b"\x7f")
    while length >= 0x80:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*prefix, length]) + data
