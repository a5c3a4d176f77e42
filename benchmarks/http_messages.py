"""Small HTTP/1.1 parser for the load generator and the stub predictor."""

from dataclasses import dataclass, field

_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_CHUNKED = b"\r\ntransfer-encoding: chunked"
_CLOSE = b"\r\nconnection: close"


@dataclass(frozen=True, slots=True)
class Message:
    """A request or a response.

    Attributes
    ----------
    head
        Start line and headers, in lower case.
    last
        True if the sender closes the connection after this message.
    """

    head: bytes
    body: bytes
    last: bool

    @property
    def status(self) -> int:
        """Status code of a response."""
        return int(self.head[9:12])

    @property
    def path(self) -> bytes:
        """Path of a request, in lower case."""
        return self.head.split(b" ", 2)[1]

    def header(self, name: bytes) -> bytes | None:
        """Value of a header, or None if the message has no such header."""
        _, found, rest = self.head.partition(b"\r\n%s:" % name)
        return rest.partition(b"\r\n")[0].strip() if found else None


@dataclass(slots=True)
class MessageReader:
    """Collects bytes as they arrive and returns the complete messages."""

    _buffer: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> Message | None:
        """Add bytes; return the next message, or None if it is incomplete."""
        self._buffer += data
        end = self._buffer.find(_END)
        if end < 0:
            return None
        head = bytes(self._buffer[: end + 2]).lower()
        start = end + len(_END)
        if _CHUNKED in head:
            stop = self._buffer.find(b"0\r\n\r\n", start)
            stop = stop + 5 if stop >= 0 else -1
        else:
            _, found, rest = head.partition(_LENGTH)
            stop = start + (int(rest.partition(b"\r\n")[0]) if found else 0)
        if stop < 0 or len(self._buffer) < stop:
            return None
        message = Message(head, bytes(self._buffer[start:stop]), _CLOSE in head)
        del self._buffer[:stop]
        return message
