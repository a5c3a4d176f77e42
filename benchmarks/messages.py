"""HTTP/1.1 messages out of a stream of bytes: as much of it as a load generator and a stub need."""

from dataclasses import dataclass, field

_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_CHUNKED = b"\r\ntransfer-encoding: chunked"
_CLOSE = b"\r\nconnection: close"


@dataclass(frozen=True, slots=True)
class Message:
    """A request or an answer.

    Attributes
    ----------
    head
        Start line and headers, in lower case.
    last
        Whether the sender closes the connection.
    """

    head: bytes
    body: bytes
    last: bool

    @property
    def status(self) -> int:
        """An answer's status."""
        return int(self.head[9:12])

    @property
    def path(self) -> bytes:
        """A request's path, in lower case."""
        return self.head.split(b" ", 2)[1]

    def header(self, name: bytes) -> bytes | None:
        """A header's value, if it is there."""
        _, found, rest = self.head.partition(b"\r\n%s:" % name)
        return rest.partition(b"\r\n")[0].strip() if found else None


@dataclass(slots=True)
class Reader:
    """Takes bytes as they come, and gives each message that is complete."""

    _buffer: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> Message | None:
        """The next message, if it is complete."""
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
