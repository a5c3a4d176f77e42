"""A limit on the large requests that are read at the same time, over REST and gRPC together.

A request takes memory while it arrives, before any limit on complete requests can see it: requests that stop
just before their end would take any amount. Until its turn comes, a request takes little: HTTP's flow control
keeps the rest of it in the client. Then large requests are decoded one after another, because the event loop
answers no one else while it decodes.
"""

import asyncio
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from transformer.errors import QueueFull, RequestTooSlow
from transformer.server.asgi import MAX_UNREAD
from transformer.server.byte_budget import ByteBudget

#: Maximum requests that are read at the same time. One that has arrived is read in less than a millisecond.
MAX_READING = 16
#: Seconds after which a request that still arrives is refused if one connection waits; with n connections, an
#: n-th of it, but at least the second value.
MAX_READING_S, MIN_READING_S = 1.0, 0.1
#: Seconds in which all connections that wait get their turns. Where they are more than 80, the second value
#: above is lowered for it.
MAX_WAIT_S = 0.5
#: Seconds between two checks of that, and the first check in which a request can be refused: one that has
#: arrived is read before, however busy the process is.
CHECK_S, MIN_CHECKS = 0.005, 3
#: Pause after a large request was decoded, as a part of the time that this took.
DECODE_PAUSE = 0.25

_Content = TypeVar("_Content")


class FairLimit:
    """A limit of which no connection can take everything.

    A connection may take one more while it has fewer than are free. So one connection takes at most half of
    the limit, two take two thirds, and there is something left for the next one (the dynamic threshold of
    Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998).
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._taken = Counter[Hashable]()

    def allows(self, connection: Hashable) -> bool:
        """Return True if the connection may take one more."""
        return self._taken[connection] < self._free

    def add(self, connection: Hashable) -> None:
        """Take one."""
        self._taken[connection] += 1
        self._free -= 1

    def remove(self, connection: Hashable) -> None:
        """Give one back."""
        self._free += 1
        self._taken[connection] -= 1
        if not self._taken[connection]:
            del self._taken[connection]


class FairReader:
    """Reads requests. Where requests of several connections wait, the connections take turns.

    Parameters
    ----------
    max_bytes
        Maximum bytes of all requests that are complete and wait to be decoded.
    """

    def __init__(self, max_bytes: int) -> None:
        self._reads = FairLimit(MAX_READING)
        self._complete = ByteBudget(max_bytes)
        self._decoding = asyncio.Lock()
        #: Timeouts of the requests that are read, with the time at which each began and its checks.
        self._reading: dict[asyncio.Timeout, tuple[float, int]] = {}
        #: Requests that wait, by connection.
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()
        self._check: asyncio.TimerHandle | None = None

    async def read(
        self, connection: Hashable, read: Callable[[], Awaitable[_Content]], timeout_s: float = math.inf
    ) -> _Content:
        """Read one request as soon as its turn comes.

        Parameters
        ----------
        connection
            The client's connection.
        read
            Reads the request.
        timeout_s
            Seconds in which it must be read.

        Raises
        ------
        QueueFull
            If it takes too long while others wait; see `MAX_READING_S`.
        RequestTooSlow
            If it takes more than the timeout.
        """
        if self._reads.allows(connection):
            self._reads.add(connection)
        else:
            await self._turn(connection)
        began = asyncio.get_running_loop().time()
        deadline = began + timeout_s
        timeout = asyncio.timeout_at(deadline)
        self._reading[timeout] = (began, 0)
        try:
            async with timeout:
                return await read()
        except TimeoutError:
            # Outside of this block, so that the error does not keep the unfinished request by its context.
            pass
        finally:
            del self._reading[timeout]
            self._done(connection)
        if timeout.when() == deadline:
            raise RequestTooSlow(f"the message was not complete within {timeout_s:g} s", limit="time")
        raise QueueFull(
            "too many requests arrive at the same time, and this one took too long; try again later",
            limit="reading",
        )

    async def may_decode(self, size: int) -> None:
        """Wait for the turn of a request that was read. The caller decodes it before it awaits anything else.

        Small requests do not wait. After a large one, there is time for everything else.

        Parameters
        ----------
        size
            The request's size in bytes.

        Raises
        ------
        QueueFull
            If too many bytes wait already.
        """
        if size <= MAX_UNREAD:
            return
        self._complete.reserve(size)
        try:
            await self._decoding.acquire()
        finally:
            self._complete.release(size)
        loop = asyncio.get_running_loop()
        loop.call_soon(self._pause, loop, loop.time())

    def _pause(self, loop: asyncio.AbstractEventLoop, began: float) -> None:
        loop.call_later(DECODE_PAUSE * (loop.time() - began), self._decoding.release)

    async def _turn(self, connection: Hashable) -> None:
        """Wait until a request of the connection may be read; it is then counted as being read."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.setdefault(connection, deque()).append(turn)
        if self._check is None:
            self._check = loop.call_later(CHECK_S, self._refuse_slow)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._done(connection)
            raise

    def _done(self, connection: Hashable) -> None:
        """Count one request less, and let the next ones be read."""
        self._reads.remove(connection)
        while (waiting := next(filter(self._reads.allows, self._waiting), None)) is not None:
            turns = self._waiting.pop(waiting)
            turn = turns.popleft()
            if turns:
                self._waiting[waiting] = turns
            if not turn.done():
                self._reads.add(waiting)
                turn.set_result(None)

    def _refuse_slow(self) -> None:
        """Refuse requests that take too long while others wait."""
        self._check = None
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        waiting = len(self._waiting)
        limit = max(MAX_READING_S / waiting, min(MIN_READING_S, MAX_WAIT_S * MAX_READING / waiting))
        for timeout, (began, checks) in self._reading.items():
            if checks + 1 >= MIN_CHECKS and now - began >= limit and not timeout.expired():
                timeout.reschedule(now)
            self._reading[timeout] = (began, checks + 1)
        self._check = loop.call_later(CHECK_S, self._refuse_slow)
