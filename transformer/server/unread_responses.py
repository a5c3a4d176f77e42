"""A limit on the bytes of REST responses that clients do not read: each takes memory until it is sent."""

from collections import OrderedDict
from typing import Protocol

#: Bytes of responses that one connection keeps without being counted.
MAX_UNCOUNTED = 16 * 2**10
#: Maximum bytes of all others: 100 responses of 10,000 candidates.
MAX_UNREAD_BYTES = 64 * 2**20


class Connection(Protocol):
    """A client's connection, as this limit sees it."""

    def abort(self) -> None:
        """Close it at once."""


class UnreadResponses:
    """The responses of one server that wait for their clients.

    Beyond the limit, the connection that has been waited for longest is closed. So a client that reads is not
    closed because of others that do not, or that read as slowly as they may.
    """

    def __init__(self) -> None:
        self._bytes = 0
        #: Bytes by connection, the one that waits longest first.
        self._waiting: OrderedDict[Connection, int] = OrderedDict()

    def add(self, connection: Connection, size: int) -> None:
        """Count the bytes that a connection could not send."""
        self._waiting[connection] = size
        self._bytes += size
        while self._bytes > MAX_UNREAD_BYTES and len(self._waiting) > 1:
            longest = next(iter(self._waiting))
            self.remove(longest)
            longest.abort()

    def remove(self, connection: Connection) -> None:
        """Count the bytes no longer, because they are sent or dropped."""
        self._bytes -= self._waiting.pop(connection, 0)
