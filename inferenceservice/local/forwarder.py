"""Layer-4 load balancer on loopback, like a Kubernetes Service: each new connection goes to one backend.

A proxy program is not used: a rollout changes the backends while connections are open, and waits until an old
backend has none.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

_CHUNK_BYTES = 2**16
#: Address of a backend that is down: its share of the requests fails, and goes to no other backend.
DOWN = ""
#: Seconds to connect to a backend.
_CONNECT_TIMEOUT_S = 5


@dataclass(frozen=True, slots=True)
class Backend:
    """Address of a backend, ``host:port`` or `DOWN`, and its weight among all backends."""

    address: str
    weight: float = 1.0


def choose_backend(backends: Sequence[Backend]) -> Backend:
    """Choose a backend at random, by weight."""
    weights = [backend.weight for backend in backends]
    (backend,) = random.choices(backends, weights)  # noqa: S311 (a share, not a secret)
    return backend


#: Serves one connection; its writer is closed when the coroutine ends.
ConnectionHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class LoopbackServer:
    """TCP server on loopback that cancels its open connections when it closes.

    Parameters
    ----------
    handler
        Serves each connection.
    """

    def __init__(self, handler: ConnectionHandler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> int:
        """Listen, and return the port.

        Raises
        ------
        OSError
            If the port cannot be bound.
        """
        # `self._server` is set before the server listens, so that `close` always knows of it.
        self._server = await asyncio.start_server(self._on_connect, "127.0.0.1", port, start_serving=False)
        await self._server.start_serving()
        address: tuple[str, int] = self._server.sockets[0].getsockname()
        return address[1]

    async def close(self) -> None:
        """Stop listening and close the open connections."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _on_connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._handler(reader, writer))
        self._open.add(task)

        def close(_: asyncio.Task[None]) -> None:
            # A callback also runs for a task that is cancelled before it begins.
            self._open.discard(task)
            writer.close()

        task.add_done_callback(close)


class Forwarder(LoopbackServer):
    """Loopback server that copies each connection, byte by byte, to and from one random backend.

    Set `backends` at any time: new connections use the new value, open ones stay where they are.
    """

    def __init__(self, backends: Sequence[Backend] = ()) -> None:
        super().__init__(self._forward)
        self.backends = backends
        #: Open connections to each address.
        self.connections: Counter[str] = Counter()
        self._forwarding: dict[asyncio.Task[None], str] = {}

    def disconnect(self, address: str) -> None:
        """Close the connections to a backend, so that their clients open others."""
        for task in [task for task, to in self._forwarding.items() if to == address]:
            task.cancel()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward a connection to a random backend; one that it refuses goes to the first backend."""
        if not self.backends:
            return
        first = self.backends[0].address
        chosen = choose_backend(self.backends).address
        if not await self._forward_to(chosen, reader, writer) and chosen != first:
            await self._forward_to(first, reader, writer)

    async def _forward_to(
        self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Forward a connection to an address; return False if that cannot be connected to."""
        if address == DOWN:
            return False
        # Counted before it is connected: a drain that waits for 0 must not miss a connection in progress.
        self.connections[address] += 1
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (connections are served in tasks)
        self._forwarding[task] = address
        try:
            upstream = await _connect(address)
            if upstream is not None:
                await _copy_both_ways(reader, writer, *upstream)
            return upstream is not None
        finally:
            self.connections[address] -= 1
            del self._forwarding[task]


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            return await asyncio.open_connection(host, int(port))
    return None


async def _copy_both_ways(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    upstream_reader: asyncio.StreamReader,
    upstream_writer: asyncio.StreamWriter,
) -> None:
    """Copy in both directions until one side ends; HTTP does not use half-open connections."""
    directions = {
        asyncio.create_task(_copy(reader, upstream_writer)),
        asyncio.create_task(_copy(upstream_reader, writer)),
    }
    try:
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for direction in directions:
            direction.cancel()
        # Closed before the wait below, which may be cancelled too.
        upstream_writer.close()
        await asyncio.gather(*directions, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
