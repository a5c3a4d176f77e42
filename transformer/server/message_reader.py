"""Limits on gRPC calls and on the messages that are read at the same time.

gRPC's core takes memory of up to the maximum message size for each call whose message it reads, and Python
sees the message only when it is complete: streams of half messages would take any amount. Until its message
is read, a call takes at most `UNREAD_BYTES`, because HTTP/2's flow control keeps the rest in the client. So
each call waits here until its message may be read.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from transformer.errors import QueueFull, RequestTooSlow

#: Maximum calls in flight.
MAX_CALLS = 16_384
#: Bytes of a message that a client can send before it is read: about 30 candidates.
UNREAD_BYTES = 8192
#: Maximum messages that are read at the same time. One that has arrived is read in less than a millisecond.
MAX_READING = 16
#: Seconds after which a message that still arrives is refused if other calls wait.
MAX_READING_S = 0.5

_Message = TypeVar("_Message")


class FairLimit:
    """A limit of which no connection can take everything.

    A connection may take one more while it has fewer than are free. So one connection takes at most half of
    the limit, two take two thirds, and there is something left for the next one (the dynamic threshold of
    Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998).
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._taken = Counter[str]()

    def allows(self, connection: str) -> bool:
        """Return True if the connection may take one more."""
        return self._taken[connection] < self._free

    def add(self, connection: str) -> None:
        """Take one."""
        self._taken[connection] += 1
        self._free -= 1

    def remove(self, connection: str) -> None:
        """Give one back."""
        self._free += 1
        self._taken[connection] -= 1
        if not self._taken[connection]:
            del self._taken[connection]


class MessageReader:
    """Reads the messages of a server's calls. Where several connections' calls wait, they take turns.

    Parameters
    ----------
    timeout_s
        Seconds in which a message must be complete.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._calls = FairLimit(MAX_CALLS)
        self._reads = FairLimit(MAX_READING)
        #: Timeouts of the messages that are read, in the order in which they began, with the time of that.
        self._reading: dict[asyncio.Timeout, float] = {}
        #: Calls that wait, by connection.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._check: asyncio.TimerHandle | None = None

    @contextmanager
    def call(self, connection: str) -> Iterator[None]:
        """Count a call while it is in flight.

        Raises
        ------
        QueueFull
            If there are too many already.
        """
        if not self._calls.allows(connection):
            raise QueueFull(
                f"too many gRPC calls in flight: limit {MAX_CALLS}, half of it for one connection; "
                "try again later"
            )
        self._calls.add(connection)
        try:
            yield
        finally:
            self._calls.remove(connection)

    async def read(self, connection: str, read: Callable[[], Awaitable[_Message]]) -> _Message:
        """Read the message of one call as soon as it may be read.

        Parameters
        ----------
        connection
            The client's address.
        read
            Reads the message.

        Raises
        ------
        QueueFull
            If the message takes more than `MAX_READING_S` while other calls wait.
        RequestTooSlow
            If it takes more than the timeout.
        """
        if self._reads.allows(connection):
            self._reads.add(connection)
        else:
            await self._turn(connection)
        began = asyncio.get_running_loop().time()
        deadline = began + self._timeout_s
        timeout = asyncio.timeout_at(deadline)
        self._reading[timeout] = began
        try:
            async with timeout:
                return await read()
        except TimeoutError:
            if timeout.when() != deadline:
                raise QueueFull(
                    f"the message took more than {MAX_READING_S:g} s while other calls waited to be read; "
                    "try again later"
                ) from None
            raise RequestTooSlow(f"the message was not complete within {self._timeout_s:g} s") from None
        finally:
            del self._reading[timeout]
            self._done(connection)

    async def _turn(self, connection: str) -> None:
        """Wait until a message of the connection may be read; it is then counted as being read."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.setdefault(connection, deque()).append(turn)
        if self._check is None:
            self._check = loop.call_later(MAX_READING_S, self._refuse_slow)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._done(connection)
            raise

    def _done(self, connection: str) -> None:
        """Count one message less, and let the next calls read theirs."""
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
        """Refuse messages that take too long while other calls wait."""
        self._check = None
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        for timeout, began in self._reading.items():
            if now - began >= MAX_READING_S and not timeout.expired():
                timeout.reschedule(now)
        self._check = loop.call_later(MAX_READING_S / 4, self._refuse_slow)
