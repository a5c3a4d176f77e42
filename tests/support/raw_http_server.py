"""A server that sends any bytes as responses, and a connection to it."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np

from transformer.bundle.target import BINARY
from transformer.upstream.client import PredictorAddress, RestClient, connect
from transformer.upstream.http_connection import HttpConnection

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"content-length: 5\r\n\r\nhello"
OTHER = OK + b"content-length: 5\r\n\r\nother"

#: The action of a server after a request: it gets the number of the request and the writer.
Action = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


class RawHttpServer:
    """A server that reads requests and runs an action after each.

    Attributes
    ----------
    requests
        Requests with their bodies.
    connections
        Number of connections.
    left
        Set when a client has closed a connection.
    """

    def __init__(self, turn: Action) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.left = asyncio.Event()
        self.port = 0
        self._turn = turn
        self._writers: list[asyncio.StreamWriter] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while head := await self._head(reader):
                (length,) = [
                    int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")
                ] or [0]
                self.requests.append(head + await reader.readexactly(length))
                await self._turn(len(self.requests), writer)
        self.left.set()
        writer.close()

    async def _head(self, reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""

    def hang_up(self) -> None:
        for writer in self._writers:
            writer.close()


@contextlib.asynccontextmanager
async def raw_http_server(
    turn: Action | bytes, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[RawHttpServer]:
    """Run a server with one action, or with the same bytes, for each request."""
    server = RawHttpServer(sends(turn) if isinstance(turn, bytes) else turn)
    listening = await asyncio.start_server(server.handle, host, 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        server.hang_up()


def sends(*answers: bytes, hangs_up: bool = False) -> Action:
    """Return an action that sends the responses in order, and then repeats the last one."""

    async def turn(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answers[min(number, len(answers)) - 1])
        if hangs_up:
            writer.close()

    return turn


def sends_byte_by_byte(answer: bytes, *, hangs_up: bool = False) -> Action:
    async def turn(number: int, writer: asyncio.StreamWriter) -> None:
        for byte in answer:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        if hangs_up:
            writer.close()

    return turn


@contextlib.asynccontextmanager
async def connection_to(server: RawHttpServer, *how: Any) -> AsyncIterator[HttpConnection]:
    connection = await HttpConnection.open("127.0.0.1", server.port, *how)
    try:
        yield connection
    finally:
        connection.close()


async def get(connection: HttpConnection) -> tuple[int, bytes]:
    async with asyncio.timeout(10):
        return await connection.request("GET", "/", {})


SCORES_V2 = [[0.25, 0.75]]
BODY_V2 = b'{"outputs": [{"name": "predict_proba", "shape": [1, 2], "data": [0.25, 0.75]}]}'
ANSWER_V2 = OK + b"content-length: %d\r\n\r\n" % len(BODY_V2) + BODY_V2


def rest_client(host: str, *, reconnects: bool = False, name: str = "placement", **more: Any) -> RestClient:
    address = PredictorAddress(host, "v2", name, "predict_proba", **more)
    client = connect(address, reconnects=reconnects)
    assert isinstance(client, RestClient)
    return client


async def call(client: RestClient, headers: dict[str, str] | None = None) -> list[list[float]]:
    async with asyncio.timeout(10):
        scores = await client.call(np.zeros((1, 3)), None, BINARY, headers or {})
    rows: list[list[float]] = scores.tolist()
    return rows
