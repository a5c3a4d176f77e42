"""A layer-4 address with backends behind it, as a Kubernetes Service has: each new connection goes to one."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

_CHUNK = 2**16
#: Seconds to reach a backend.
_CONNECT_TIMEOUT_S = 5


@dataclass(frozen=True, slots=True)
class Backend:
    """Where connections go: ``host:port``, and its share among all backends."""

    address: str
    weight: float = 1.0


def choose(backends: Sequence[Backend]) -> Backend:
    """One of the backends at random, by their weights."""
    weights = [backend.weight for backend in backends]
    (backend,) = random.choices(backends, weights)  # noqa: S311 (a share, not a secret)
    return backend


#: Serves one connection; its writer is closed when that ends.
Carry = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class LoopbackServer:
    """Listens on loopback; what it has open ends with it.

    Parameters
    ----------
    carry
        What is done with each connection.
    """

    def __init__(self, carry: Carry) -> None:
        self._carry = carry
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> int:
        """Listen, and return the port.

        Raises
        ------
        OSError
            If the port cannot be bound.
        """
        # First made, then started: of one that listens already, `close` must know.
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, start_serving=False)
        await self._server.start_serving()
        address: tuple[str, int] = self._server.sockets[0].getsockname()
        return address[1]

    async def close(self) -> None:
        """Stop listening and end what is open."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer))
        self._open.add(task)

        def close(_: asyncio.Task[None]) -> None:
            # Also where it was cancelled before it could begin.
            self._open.discard(task)
            writer.close()

        task.add_done_callback(close)


class Forwarder(LoopbackServer):
    """Listens on loopback and carries each connection, byte by byte, to one of the backends at random.

    Set `backends` at any time: new connections follow, those that are open stay where they are.
    """

    def __init__(self, backends: Sequence[Backend] = ()) -> None:
        super().__init__(self._forward)
        self.backends = backends
        #: Open connections to each address.
        self.connections: Counter[str] = Counter()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.backends:
            return
        address = choose(self.backends).address
        # From now on: who waits until nobody is connected there must not miss one that is just coming.
        self.connections[address] += 1
        try:
            upstream = await _connect(address)
            if upstream is not None:
                await _join(reader, writer, *upstream)
        finally:
            self.connections[address] -= 1


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            return await asyncio.open_connection(host, int(port))
    return None


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    upstream_reader: asyncio.StreamReader,
    upstream_writer: asyncio.StreamWriter,
) -> None:
    """Copy both ways. As soon as one side has ended, so has the connection: HTTP knows no half-open ones."""
    ways = {
        asyncio.create_task(_copy(reader, upstream_writer)),
        asyncio.create_task(_copy(upstream_reader, writer)),
    }
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        # Before the wait, which may be interrupted itself.
        upstream_writer.close()
        await asyncio.gather(*ways, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
