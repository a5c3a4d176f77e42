"""How long a client may keep us waiting: for its request, for its body, or to take its answer."""

import asyncio
from typing import Any, Literal

#: Bytes of a body that a client must send, or of its answers that it must take, within the time-out.
MIN_PROGRESS = 10_000
#: How often a connection is looked at before it has kept us waiting for the whole time-out.
LOOKS = 20
#: How often while a client may read why it was refused; what it still sends is thrown away.
LINGER_LOOKS = 5

#: What the client keeps us waiting for.
Waits = Literal["nothing", "request", "head", "body", "rest", "reader", "end"]


def linger_s(timeout_s: float) -> float:
    """Seconds for which what an answered or refused client still sends is thrown away."""
    return timeout_s * LINGER_LOOKS / LOOKS


class ProgressTimer:
    """With one client: counts how often in a row it was found to keep us waiting for the same."""

    def __init__(self) -> None:
        self._waits: tuple[Waits, int] = ("nothing", 0)
        self._progress = 0
        self._looks = 0

    def is_over(self, waits: Waits, request: int, progress: int) -> bool:
        """Count a look; whether it was one too many.

        Parameters
        ----------
        waits
            What we wait for.
        request
            The number of the request that it belongs to.
        progress
            Bytes of it that have come or gone.
        """
        # An answer that is not read belongs to no request that is being read.
        which = (waits, 0 if waits in {"nothing", "reader", "end"} else request)
        if which != self._waits or progress - self._progress >= MIN_PROGRESS:
            self._waits, self._progress, self._looks = which, progress, 0
        self._looks += 1
        return self._looks > (LINGER_LOOKS if waits in {"rest", "end"} else LOOKS)


class ClientTimeouts:
    """Looks at a server's connections again and again, while there are any.

    One timer for all of them: a request is not made dearer by it. It counts how often it has looked, not how
    long ago that was, so that a process which was stopped does not take its clients for slow.

    Parameters
    ----------
    timeout_s
        Seconds that a client has for a request's head, for the next 10,000 bytes of its body, and for the
        next 10,000 of its answers.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        """Look at these from now on; nothing, where that has begun."""
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_s / LOOKS, self._look, loop, connections)

    def _look(self, loop: asyncio.AbstractEventLoop, connections: set[Any]) -> None:
        self._timer = None
        if connections:
            self.begin(loop, connections)
        for connection in list(connections):
            connection.look(self._timeout_s)
