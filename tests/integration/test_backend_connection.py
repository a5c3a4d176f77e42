"""The ingress' connection to a backend reads every framing of a response, and reports each invalid one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from tornado.tcpclient import TCPClient

from inferenceservice.local.backend_connection import BackendConnection, BackendError

TIMEOUT_S = 20


class RawBackend:
    """A backend that answers each request with these bytes, and records the bytes of the request."""

    def __init__(self, response: bytes, *, keep_open: bool) -> None:
        self._response = response
        self._keep_open = keep_open
        self.received = b""
        self.disconnected = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.received = await reader.readuntil(b"\r\n\r\n")
        writer.write(self._response)
        await writer.drain()
        if self._keep_open:
            while part := await reader.read(2**16):
                self.received += part
        self.disconnected.set()
        writer.close()


@contextlib.asynccontextmanager
async def connected(
    response: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", *, keep_open: bool = True
) -> AsyncIterator[tuple[RawBackend, BackendConnection]]:
    backend, client = RawBackend(response, keep_open=keep_open), TCPClient()
    server = await asyncio.start_server(backend.serve, "127.0.0.1", 0)
    async with server, asyncio.timeout(TIMEOUT_S):
        connection = await BackendConnection.open(client, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            yield backend, connection
        finally:
            connection.close()
            await backend.disconnected.wait()
            client.close()


async def response_to(connection: BackendConnection, method: str = "GET") -> tuple[int, bytes]:
    """Status and body of the response to a request without a body."""
    await connection.send_head(method, "/", [("host", "localhost")])
    start_line, headers = await connection.read_head()
    return start_line.code, b"".join([part async for part in connection.read_body(start_line, headers)])


VALID = {
    "a length": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"hello"),
    "an empty body": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
    "chunks": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        b"hello",
    ),
    "chunks with extensions and trailers": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n"
        b"5;name=value\r\nhello\r\n0\r\nx-checksum: 1\r\nx-other: 2\r\n\r\n",
        b"hello",
    ),
    "informational responses before": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"hello",
    ),
    "lines that end with LF": (b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello", b"hello"),
}


@pytest.mark.parametrize(("response", "body"), VALID.values(), ids=VALID)
async def test_a_response_is_read_to_its_end_and_no_further(response, body):
    async with connected(response) as (_, connection):
        assert await response_to(connection) == (200, body)


async def test_a_response_without_a_length_ends_with_its_connection():
    async with connected(b"HTTP/1.1 200 OK\r\n\r\nhello", keep_open=False) as (_, connection):
        assert await response_to(connection) == (200, b"hello")


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
@pytest.mark.parametrize("framing", ["content-length: 5", "transfer-encoding: chunked"])
async def test_a_response_that_has_no_body_is_complete_with_its_head(method, status, framing):
    head = f"HTTP/1.1 {status} Reason\r\n{framing}\r\n\r\n".encode()
    async with connected(head) as (_, connection):
        assert await response_to(connection, method) == (status, b"")


INVALID = {
    "nothing": b"",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "a head that breaks off": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n",
    "a head without end": b"HTTP/1.1 200 OK\r\nx: " + b"x" * 2**17,
    "a header without a name": b"HTTP/1.1 200 OK\r\n: value\r\n\r\n",
    "a body that breaks off": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
    "a length that is no number": b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nhello",
    "a negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "a length and chunks": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "another encoding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello",
    "a chunk without a size": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nhello\r\n0\r\n\r\n",
    "a chunk that breaks off": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhell",
    "chunks without an end": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "trailers that break off": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: 1\r\n",
}


@pytest.mark.parametrize("response", INVALID.values(), ids=INVALID)
async def test_a_response_that_is_not_valid_is_an_error(response):
    async with connected(response, keep_open=False) as (_, connection):
        with pytest.raises(BackendError):
            await response_to(connection)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "GET"])
async def test_a_body_of_unknown_length_is_sent_in_chunks_with_any_method(method):
    async with connected() as (backend, connection):
        await connection.send_head(method, "/x?y", [("Transfer-Encoding", "chunked")])
        await connection.send(b"one ")
        await connection.send(b"two")
        await connection.send_end()
        await connection.read_head()
    expected = (
        f"{method} /x?y HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"
    )
    assert backend.received == expected.encode()


async def test_a_body_of_known_length_is_sent_as_it_is():
    async with connected() as (backend, connection):
        await connection.send_head("POST", "/", [("Content-Length", "7")])
        await connection.send(b"one ")
        await connection.send(b"two")
        await connection.send_end()
        await connection.read_head()
    assert backend.received == b"POST / HTTP/1.1\r\nContent-Length: 7\r\n\r\none two"


async def test_an_address_where_nothing_listens_is_an_error():
    client = TCPClient()
    with pytest.raises(BackendError, match=r"127\.0\.0\.1:1 cannot be reached"):
        await BackendConnection.open(client, "127.0.0.1:1")
    client.close()
