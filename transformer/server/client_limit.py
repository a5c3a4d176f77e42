"""Limits on REST clients: a new connection replaces the longest idle one, or is refused."""

from collections import OrderedDict
from typing import Protocol

from transformer.metrics import CLIENTS_TURNED_AWAY
from transformer.server.descriptors import ClientLimits
from transformer.server.fair_reader import FairLimit

#: Maximum requests of all connections that wait behind one that is being answered, half of it for one
#: connection. Each takes 2 KB, and 125 KB with as many headers as are accepted.
MAX_PIPELINED = 2000


class Connection(Protocol):
    """A client's connection, as this limit sees it."""

    @property
    def is_idle(self) -> bool:
        """True while it carries no part of a request or a response."""

    def close_idle(self) -> None:
        """Close it."""


class ClientLimit:
    """Limits the connections of one server, and their pipelined requests.

    Parameters
    ----------
    limits
        Maximum connections, and maximum connections that are refused at the same time.

    Attributes
    ----------
    pipelined
        Limits the pipelined requests.
    """

    def __init__(self, limits: ClientLimits) -> None:
        self.max_connections = limits.rest
        self.pipelined = FairLimit(MAX_PIPELINED)
        self._max_with_refused = limits.rest + limits.refused
        #: Connections in the order in which they became idle. Some of them are busy again.
        self._idle: OrderedDict[Connection, None] = OrderedDict()

    def became_idle(self, connection: Connection) -> None:
        """Note that a connection is idle from now on."""
        self._idle[connection] = None
        self._idle.move_to_end(connection)

    def remove(self, connection: Connection) -> None:
        """Forget a closed connection."""
        self._idle.pop(connection, None)

    def admits(self, connections: int) -> bool:
        """Return True if a new connection can stay; the longest idle one is closed for it if necessary.

        Parameters
        ----------
        connections
            Open connections of the server, with the new one.
        """
        if connections <= self.max_connections:
            return True
        while self._idle:
            longest, _ = self._idle.popitem(last=False)
            if longest.is_idle:
                longest.close_idle()
                CLIENTS_TURNED_AWAY.labels("idle").inc()
                return True
        CLIENTS_TURNED_AWAY.labels("refused").inc()
        return False

    def can_answer(self, connections: int) -> bool:
        """Return True if a refused connection can stay open until its client has read the error."""
        return connections <= self._max_with_refused
