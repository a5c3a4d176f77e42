"""Decides when a slow client's time is up; `client_connection` then answers 408 or disconnects it."""

import asyncio
from enum import Enum
from typing import Any

#: Seconds after which a client is asked to reconnect, over REST and gRPC, with jitter; no request is lost.
#: New replicas get their share, and clients leave a terminating pod while it still serves.
CONNECTION_AGE_S = 5.0
#: Bytes of a body that a client must send, or of responses that it must read, within the timeout.
MIN_PROGRESS = 10_000
#: Checks of a connection within the timeout.
CHECKS = 20
#: Checks while the rest of what a refused client sends is discarded.
LINGER_CHECKS = 5


class WaitsFor(Enum):
    """The action that a connection waits for."""

    #: No action of the client.
    NOTHING = "nothing"
    #: The first byte of the next request.
    REQUEST = "request"
    #: The rest of a head.
    HEAD = "head"
    #: The rest of a body.
    BODY = "body"
    #: The rest of a body that was answered already.
    REMAINDER = "remainder"
    #: Reading of responses.
    READ = "read"
    #: Closing by the client, after a refusal.
    CLOSE = "close"


#: Waits that belong to the connection and not to the request that is being read.
_OF_CONNECTION = {WaitsFor.NOTHING, WaitsFor.READ, WaitsFor.CLOSE}
_LINGERING = {WaitsFor.REMAINDER, WaitsFor.CLOSE}


def linger_s(timeout_s: float) -> float:
    """Return the seconds for which the rest of what an answered or refused client sends is discarded."""
    return timeout_s * LINGER_CHECKS / CHECKS


class ProgressTimer:
    """Counts successive checks in which one client made no progress."""

    def __init__(self) -> None:
        self._waits: tuple[WaitsFor, int] = (WaitsFor.NOTHING, 0)
        self._progress = 0
        self._checks = 0

    def check(self, waits: WaitsFor, request: int, progress: int) -> bool:
        """Count a check; return True if the client's time is up.

        Parameters
        ----------
        waits
            The action that is waited for.
        request
            Number of the request that is being read.
        progress
            Bytes of the body or the responses transferred so far.
        """
        current = (waits, 0 if waits in _OF_CONNECTION else request)
        if current != self._waits or progress - self._progress >= MIN_PROGRESS:
            self._waits, self._progress, self._checks = current, progress, 0
        self._checks += 1
        return self._checks > (LINGER_CHECKS if waits in _LINGERING else CHECKS)


class ClientTimeouts:
    """Checks all connections of a server at intervals, while there are any.

    One timer serves all connections, so that requests cost no more. It counts checks instead of seconds, so
    that a process that was suspended does not take its clients for slow.

    Parameters
    ----------
    timeout_s
        Seconds that a client has for a request's head, for the next 10,000 bytes of its body, and to read the
        next 10,000 bytes of responses.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        """Start to check these connections, if that has not started yet."""
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_s / CHECKS, self._check, loop, connections)

    def _check(self, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        self._timer = None
        if connections:
            self.start(loop, connections)
        for connection in list(connections):
            connection.check_progress(self._timeout_s)
